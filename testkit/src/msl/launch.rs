//! Runs one launch in the compiled program and brings the buffers' contents back.
//!
//! The kernel runs in a process of its own: what it breaks is an error here, and the address sanitizer knows
//! the end of every buffer. `testkit/msl/program.h` describes what is said in both directions.

use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use super::{
    BufferArgument, LaneOrder, Launch, MslError,
    compile::{TIME_LIMIT_S, failed},
};

/// The program never frees its buffers, its stacks are its own, and lines come from binutils, which clang needs.
const SANITIZER: &str =
    "detect_leaks=0:detect_stack_use_after_return=0:external_symbolizer_path=/usr/bin/addr2line";

/// Runs the kernel; buffers that it may write to hold its results afterwards.
pub(super) fn run(program: &Path, function: &str, launch: &Launch<'_>) -> Result<(), MslError> {
    let regions = Regions::of(launch.buffers);
    let output = execute(program, &request(function, launch, &regions))?;
    if !output.status.success() {
        return Err(crash(&output));
    }
    let mut answer = Answer { bytes: &output.stdout };
    match answer.number() {
        Some(0) => regions.take_results(answer).ok_or_else(|| cut_short(&output)),
        Some(1) => Err(MslError::Rule(answer.text())),
        Some(_) => Err(MslError::Launch(answer.text())),
        None => Err(cut_short(&output)),
    }
}

/// A part of memory: the bytes of one buffer, or what overlapping buffers that may be written lie in.
struct Region {
    start: usize,
    end: usize,
    is_written: bool,
}

struct Regions<'a> {
    buffers: &'a [BufferArgument<'a>],
    regions: Vec<Region>,
    /// Per buffer: the number of its region.
    region_of: Vec<usize>,
}

impl<'a> Regions<'a> {
    fn of(buffers: &'a [BufferArgument<'a>]) -> Self {
        let mut by_start: Vec<usize> = (0..buffers.len()).collect();
        by_start.sort_by_key(|&index| buffers[index].start());
        let mut regions: Vec<Region> = Vec::new();
        let mut region_of = vec![0; buffers.len()];
        for index in by_start {
            let start = buffers[index].start();
            let end = start + buffers[index].length();
            let is_written = matches!(buffers[index], BufferArgument::Memory(_));
            let last =
                regions.iter().rposition(|region| region.is_written && is_written && start < region.end);
            region_of[index] = last.unwrap_or_else(|| {
                regions.push(Region { start, end, is_written });
                regions.len() - 1
            });
            let region = &mut regions[region_of[index]];
            region.end = region.end.max(end);
        }
        Self { buffers, regions, region_of }
    }

    fn offset(&self, buffer: usize) -> usize {
        self.buffers[buffer].start() - self.regions[self.region_of[buffer]].start
    }

    fn contents(&self, region: usize) -> Vec<u8> {
        let mut contents = vec![0; self.regions[region].end - self.regions[region].start];
        for (index, buffer) in
            self.buffers.iter().enumerate().filter(|(index, _)| self.region_of[*index] == region)
        {
            let part = &mut contents[self.offset(index)..][..buffer.length()];
            match buffer {
                BufferArgument::Memory(cells) => {
                    part.iter_mut().zip(*cells).for_each(|(byte, cell)| *byte = cell.get());
                }
                BufferArgument::Bytes(bytes) => part.copy_from_slice(bytes),
            }
        }
        contents
    }

    /// Copies the regions that came back into their buffers; None if the answer is cut short.
    fn take_results(&self, mut answer: Answer<'_>) -> Option<()> {
        while !answer.bytes.is_empty() {
            let region =
                usize::try_from(answer.number()?).ok().filter(|region| *region < self.regions.len())?;
            let contents = answer.take(self.regions[region].end - self.regions[region].start)?;
            for (index, buffer) in self.buffers.iter().enumerate() {
                if let (BufferArgument::Memory(cells), true) = (buffer, self.region_of[index] == region) {
                    let part = &contents[self.offset(index)..][..cells.len()];
                    cells.iter().zip(part).for_each(|(cell, byte)| cell.set(*byte));
                }
            }
        }
        Some(())
    }
}

impl BufferArgument<'_> {
    fn start(&self) -> usize {
        match self {
            Self::Memory(cells) => cells.as_ptr().addr(),
            Self::Bytes(bytes) => bytes.as_ptr().addr(),
        }
    }

    fn length(&self) -> usize {
        match self {
            Self::Memory(cells) => cells.len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

fn request(function: &str, launch: &Launch<'_>, regions: &Regions<'_>) -> Vec<u8> {
    let (order, seed) = match launch.order {
        LaneOrder::Forward => (0, 0),
        LaneOrder::Backward => (1, 0),
        LaneOrder::Shuffled(seed) => (2, seed),
    };
    let mut request = Request(Vec::new());
    request.number(order);
    request.bytes(&seed.to_le_bytes());
    launch.groups.iter().chain(&launch.threads).for_each(|&number| request.number(number as usize));
    request.number(function.len());
    request.bytes(function.as_bytes());
    request.number(launch.threadgroup_bytes.len());
    launch.threadgroup_bytes.iter().for_each(|&bytes| request.number(bytes));
    request.number(regions.regions.len());
    for region in &regions.regions {
        request.number(region.end - region.start);
        // Bytes are copied to where every type may lie; other memory keeps how far it is off.
        request.number(if region.is_written { region.start % 16 } else { 0 });
    }
    request.number(launch.buffers.len());
    for (index, buffer) in launch.buffers.iter().enumerate() {
        request.number(regions.region_of[index]);
        request.number(regions.offset(index));
        request.number(buffer.length());
        request.number(usize::from(matches!(buffer, BufferArgument::Memory(_))));
    }
    (0..regions.regions.len()).for_each(|region| request.bytes(&regions.contents(region)));
    request.0
}

struct Request(Vec<u8>);

impl Request {
    fn number(&mut self, number: usize) {
        self.bytes(&(number as u64).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

struct Answer<'a> {
    bytes: &'a [u8],
}

impl<'a> Answer<'a> {
    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(u64::from_le_bytes(*number))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        Some(taken)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(self.bytes).into_owned()
    }
}

fn execute(program: &Path, request: &[u8]) -> Result<Output, MslError> {
    let mut child = Command::new(program)
        .env("ASAN_OPTIONS", SANITIZER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed(format!("start {}", program.display())))?;
    let mut input = child.stdin.take().expect("standard input is piped");
    // The program reads everything before it writes anything. If it died meanwhile, its status says so.
    let _ = input.write_all(request);
    drop(input);
    child.wait_with_output().map_err(failed(format!("wait for {}", program.display())))
}

fn crash(output: &Output) -> MslError {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if stderr.contains("AddressSanitizer") || stderr.contains("runtime error:") {
        let report = stderr.split("\nShadow bytes").next().unwrap_or(&stderr);
        return MslError::Memory(report.to_owned());
    }
    let status = output.status.to_string();
    if status.contains("SIGALRM") {
        MslError::Endless { limit_s: TIME_LIMIT_S }
    } else {
        MslError::Crash { status, stderr }
    }
}

fn cut_short(output: &Output) -> MslError {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    MslError::Crash { status: "its answer is cut short".into(), stderr }
}
