//! A stand-in for the Hugging Face hub on loopback, with faults on request.
//!
//! It serves one model: the file list, file facts by `HEAD` and contents by `GET` with ranges. Files that
//! end in `.safetensors` are redirected to another host name, like the real hub redirects large files. The
//! server ends when it is dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

/// The commit that `main` is at.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// A second branch, whose name has slashes, at the same commit.
pub const PULL_REQUEST: &str = "refs/pr/1";

const MAX_REQUESTS: usize = 1000;
const MAX_HEAD_BYTES: u64 = 16 << 10;
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Something that goes wrong with a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The connection closes after this many bytes of the body.
    CutAfter(usize),
    /// `Content-Length` says this, while the body stays what it is.
    ContentLength(usize),
    /// The body is announced and sent with these bytes more than the file has.
    Surplus(usize),
    /// One byte in the middle of the body is another one.
    Flipped,
    /// An error status, with an `X-Error-Code` if the text is not empty.
    Status(u16, &'static str),
    /// The answer begins this much later.
    Delay(Duration),
    /// Ranges are ignored: the whole file comes with status 200.
    NoRanges,
    /// The `ETag` is this.
    Etag(&'static str),
    /// A redirect to this address that says nothing about the file, as for a renamed model.
    Moved(&'static str),
    /// The status line and then nothing, until the client gives up.
    Stall,
}

/// The server. Its address is the hub's endpoint.
pub struct HubServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

struct Shared {
    model: String,
    port: u16,
    files: Vec<(String, Vec<u8>)>,
    stop: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<String>,
    list_sizes: Option<bool>,
    faults: Vec<PlannedFault>,
    requests: Vec<String>,
}

struct PlannedFault {
    method: &'static str,
    path_part: String,
    fault: Fault,
    remaining: usize,
}

impl HubServer {
    /// Serves the model `org/name` with these files.
    pub fn start(model: &str, files: &[(&str, Vec<u8>)]) -> std::io::Result<HubServer> {
        let socket = TcpListener::bind("127.0.0.1:0")?;
        let address = socket.local_addr()?;
        let shared = Arc::new(Shared {
            model: model.into(),
            port: address.port(),
            files: files.iter().map(|(name, contents)| (name.to_string(), contents.clone())).collect(),
            stop: AtomicBool::new(false),
            state: Mutex::default(),
        });
        let for_listener = Arc::clone(&shared);
        let listener = std::thread::spawn(move || serve(&socket, &for_listener));
        Ok(HubServer { address, shared, listener: Some(listener) })
    }

    /// What `HF_ENDPOINT` is set to.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next `times` requests of this method whose path contains `path_part` go wrong.
    pub fn plan(&self, method: &'static str, path_part: &str, fault: Fault, times: usize) {
        let planned = PlannedFault { method, path_part: path_part.into(), fault, remaining: times };
        self.shared.state().faults.push(planned);
    }

    /// From now on only requests with this token are answered.
    pub fn require_token(&self, token: &str) {
        self.shared.state().token = Some(token.into());
    }

    /// From now on the file list has no sizes, as on some mirrors.
    pub fn hide_sizes(&self) {
        self.shared.state().list_sizes = Some(false);
    }

    /// All requests so far, as `METHOD path`, with ` range` and ` token` appended where they had one.
    pub fn requests(&self) -> Vec<String> {
        self.shared.state().requests.clone()
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the listener; if this fails it is gone already.
        TcpStream::connect(self.address).ok();
        if let Some(listener) = self.listener.take() {
            listener.join().ok();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

fn serve(socket: &TcpListener, shared: &Arc<Shared>) {
    let mut connections = Vec::new();
    for stream in socket.incoming().take(MAX_REQUESTS) {
        if shared.stopped() {
            break;
        }
        let Ok(stream) = stream else { continue };
        let shared = Arc::clone(shared);
        // A client that goes away in the middle is part of the tests.
        connections.push(std::thread::spawn(move || answer(stream, &shared).ok()));
    }
    for connection in connections {
        connection.join().ok();
    }
}

struct Request {
    method: String,
    path: String,
    range_start: Option<usize>,
    token: Option<String>,
}

fn read_request(stream: &TcpStream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream.take(MAX_HEAD_BYTES)).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut words = first.split(' ').map(str::to_string);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request { method, path, range_start: None, token: None };
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let span = value.strip_prefix("bytes=").unwrap_or_default();
                request.range_start = span.split('-').next().and_then(|start| start.parse().ok());
            }
            "authorization" => request.token = value.strip_prefix("Bearer ").map(str::to_string),
            _ => {}
        }
    }
    Ok(request)
}

/// A response before faults are applied.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// What `Content-Length` says of a `HEAD` request or of a fault.
    length: Option<usize>,
}

impl Answer {
    fn error(status: u16, code: &str) -> Answer {
        let headers = if code.is_empty() { vec![] } else { vec![("X-Error-Code", code.to_string())] };
        Answer { status, headers, body: b"{\"error\":\"no\"}".to_vec(), length: None }
    }
}

fn answer(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(CONNECTION_TIMEOUT))?;
    stream.set_write_timeout(Some(CONNECTION_TIMEOUT))?;
    let request = read_request(&stream)?;
    let fault = note_request(shared, &request);
    let ignore_range = fault == Some(Fault::NoRanges);
    let mut answer = route(shared, &request, ignore_range);
    let mut cut = None;
    match fault {
        Some(Fault::CutAfter(bytes)) => cut = Some(bytes),
        Some(Fault::ContentLength(length)) => answer.length = Some(length),
        Some(Fault::Surplus(bytes)) => answer.body.extend(std::iter::repeat_n(b'x', bytes)),
        Some(Fault::Flipped) => {
            let middle = answer.body.len() / 2;
            answer.body[middle] ^= 1;
        }
        Some(Fault::Status(status, code)) => answer = Answer::error(status, code),
        Some(Fault::Delay(delay)) => std::thread::sleep(delay),
        Some(Fault::Etag(etag)) => {
            for header in answer.headers.iter_mut().filter(|header| header.0.ends_with("ETag")) {
                header.1 = etag.to_string();
            }
        }
        Some(Fault::Moved(location)) => {
            answer = Answer::error(307, "");
            answer.headers.push(("Location", location.into()));
        }
        Some(Fault::Stall) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
            // Ends when the client closes the connection, or with the read timeout.
            stream.read_exact(&mut [0; 1]).ok();
            return Ok(());
        }
        Some(Fault::NoRanges) | None => {}
    }
    write_answer(&mut stream, &request, &answer, cut)
}

fn write_answer(
    stream: &mut TcpStream,
    request: &Request,
    answer: &Answer,
    cut: Option<usize>,
) -> std::io::Result<()> {
    let length = answer.length.unwrap_or(answer.body.len());
    let mut head =
        format!("HTTP/1.1 {} Status\r\nConnection: close\r\nContent-Length: {length}\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    if request.method != "HEAD" {
        let sent = cut.unwrap_or(answer.body.len()).min(answer.body.len());
        stream.write_all(&answer.body[..sent])?;
    }
    stream.flush()
}

/// Records the request and takes the fault that is planned for it.
fn note_request(shared: &Shared, request: &Request) -> Option<Fault> {
    let mut state = shared.state();
    let range = if request.range_start.is_some() { " range" } else { "" };
    let token = if request.token.is_some() { " token" } else { "" };
    state.requests.push(format!("{} {}{range}{token}", request.method, request.path));
    let planned = state.faults.iter_mut().find(|planned| {
        planned.remaining > 0 && planned.method == request.method && request.path.contains(&planned.path_part)
    })?;
    planned.remaining -= 1;
    Some(planned.fault.clone())
}

fn route(shared: &Shared, request: &Request, ignore_range: bool) -> Answer {
    let (path, _query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    if let Some(name) = path.strip_prefix("/cdn/") {
        return contents(shared, request, name, ignore_range);
    }
    let token = shared.state().token.clone();
    if token.is_some() && token != request.token {
        return Answer::error(if request.token.is_some() { 403 } else { 401 }, "GatedRepo");
    }
    let api = format!("/api/models/{}", shared.model);
    if let Some(rest) = path.strip_prefix(&api) {
        let revision = rest.strip_prefix("/revision/").unwrap_or("main");
        return if rest.is_empty() || rest.starts_with("/revision/") {
            file_list(shared, revision)
        } else {
            Answer::error(404, "RepoNotFound")
        };
    }
    let resolve = format!("/{}/resolve/", shared.model);
    let file = path.strip_prefix(&resolve).and_then(|rest| rest.split_once('/'));
    match file {
        Some((revision, name)) if is_revision(revision) => file_answer(shared, request, name, ignore_range),
        Some(_) => Answer::error(404, "RevisionNotFound"),
        None => Answer::error(404, "RepoNotFound"),
    }
}

fn is_revision(text: &str) -> bool {
    let text = text.replace("%2F", "/");
    [COMMIT, "main", PULL_REQUEST].contains(&text.as_str())
}

fn file_list(shared: &Shared, revision: &str) -> Answer {
    if !is_revision(revision) {
        return Answer::error(404, "RevisionNotFound");
    }
    let with_sizes = shared.state().list_sizes.unwrap_or(true);
    let siblings: Vec<serde_json::Value> = shared
        .files
        .iter()
        .map(|(name, contents)| match with_sizes {
            true => serde_json::json!({"rfilename": name, "size": contents.len()}),
            false => serde_json::json!({"rfilename": name}),
        })
        .collect();
    let body = serde_json::json!({"id": shared.model, "sha": COMMIT, "siblings": siblings});
    Answer { status: 200, headers: vec![], body: body.to_string().into_bytes(), length: None }
}

fn file_answer(shared: &Shared, request: &Request, name: &str, ignore_range: bool) -> Answer {
    let Some((_, file)) = shared.files.iter().find(|(known, _)| known == name) else {
        return Answer::error(404, "EntryNotFound");
    };
    if !name.ends_with(".safetensors") {
        return contents(shared, request, name, ignore_range);
    }
    let headers = vec![
        ("Location", format!("http://localhost:{}/cdn/{name}", shared.port)),
        ("X-Linked-ETag", format!("\"{}\"", sha256_of(file))),
        ("X-Linked-Size", file.len().to_string()),
        ("X-Repo-Commit", COMMIT.into()),
    ];
    Answer { status: 302, headers, body: vec![], length: None }
}

fn contents(shared: &Shared, request: &Request, name: &str, ignore_range: bool) -> Answer {
    let Some((_, file)) = shared.files.iter().find(|(known, _)| known == name) else {
        return Answer::error(404, "EntryNotFound");
    };
    let mut headers =
        vec![("ETag", format!("W/\"{}\"", git_hash_of(file))), ("X-Repo-Commit", COMMIT.into())];
    let start = request.range_start.filter(|_| !ignore_range).unwrap_or(0);
    if start > file.len() || (start == file.len() && start > 0) {
        return Answer::error(416, "");
    }
    let body = file[start..].to_vec();
    let mut status = 200;
    if request.range_start.is_some() && !ignore_range {
        status = 206;
        headers.push(("Content-Range", format!("bytes {start}-{}/{}", file.len() - 1, file.len())));
    }
    Answer { status, headers, body, length: None }
}

/// The name of a large file's contents.
fn sha256_of(contents: &[u8]) -> String {
    hexadecimal(digest(&SHA256, contents).as_ref())
}

/// The name of any other file's contents: its hash in git.
fn git_hash_of(contents: &[u8]) -> String {
    let blob = [format!("blob {}\0", contents.len()).as_bytes(), contents].concat();
    hexadecimal(digest(&SHA1_FOR_LEGACY_USE_ONLY, &blob).as_ref())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
