//! Threads for generations, which serve one after another: to start a thread, and to set up what its first forward pass needs,
//! costs as much as a token of a small model.

use std::{
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, ThreadId},
    time::Duration,
};

pub(super) type Job = Box<dyn FnOnce() + Send>;

/// How long a thread waits for another job before it ends.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who waits. A job is sent to a thread only by whoever took it from here.
static WAITING: Mutex<Vec<(ThreadId, mpsc::Sender<Job>)>> = Mutex::new(Vec::new());

fn waiting() -> MutexGuard<'static, Vec<(ThreadId, mpsc::Sender<Job>)>> {
    // A list, whole at every moment.
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a job on a thread that waits, or on a new one. One that panics takes its thread with it.
pub(super) fn run(job: Job) {
    let waiter = waiting().pop();
    match waiter {
        Some((_, thread)) => thread.send(job).expect("a thread that is taken from the list waits"),
        None => drop(thread::spawn(move || serve(job))),
    }
}

fn serve(mut job: Job) {
    let (sender, jobs) = mpsc::channel();
    let own = thread::current().id();
    loop {
        job();
        waiting().push((own, sender.clone()));
        let next = jobs.recv_timeout(PATIENCE).ok().or_else(|| {
            let mut waiting = waiting();
            if let Some(place) = waiting.iter().position(|(thread, _)| *thread == own) {
                // Who is not in the list gets no job.
                waiting.swap_remove(place);
                return None;
            }
            // Somebody has taken this one from there meanwhile.
            drop(waiting);
            jobs.recv().ok()
        });
        let Some(next) = next else { return };
        job = next;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn thread_of_a_job() -> ThreadId {
        let (sender, receiver) = mpsc::channel();
        run(Box::new(move || sender.send(thread::current().id()).expect("somebody listens")));
        receiver.recv().expect("the job runs")
    }

    #[test]
    fn a_thread_that_is_done_serves_again() {
        let first = thread_of_a_job();
        let start = Instant::now();
        // It takes a moment until it waits.
        while thread_of_a_job() != first {
            assert!(start.elapsed() < Duration::from_secs(5), "the first thread never served again");
        }
    }

    #[test]
    fn a_job_that_panics_leaves_nobody_waiting_for_it() {
        let (sender, receiver) = mpsc::channel::<()>();
        run(Box::new(move || {
            let _held = sender;
            panic!("as planned");
        }));
        assert!(receiver.recv().is_err());
        thread_of_a_job();
    }
}
