//! Requests to the hub: status codes become errors with advice, faults that may pass are repeated.
//!
//! The hf-hub crate's own transfers check no sizes, have no timeouts and append to partial files
//! whatever the server sends; so they are done here, with the HTTP client that it brings.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::Deserialize;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use super::checksum::Checksum;
use super::{DownloadProgress, HubError, HubModel, HubOptions};

const MAX_INFO_BYTES: u64 = 64 << 20;
const MAX_REDIRECTS: usize = 5;
const TRANSFER_BYTES: usize = 256 << 10;
/// A repetition that brings at least this much does not count as a failed one.
const PROGRESS_BYTES: u64 = 1 << 20;

/// A hub, seen by one model.
pub(super) struct Client<'a> {
    model: &'a HubModel,
    options: &'a HubOptions,
    /// Follows redirects and takes the token only to the same host.
    agent: Agent,
    /// Shows redirects, whose headers describe the file.
    direct: Agent,
}

/// What the hub says about a model at a revision.
#[derive(Deserialize)]
pub(super) struct RepoInfo {
    pub(super) sha: String,
    #[serde(default)]
    pub(super) siblings: Vec<Sibling>,
}

/// A file of the repository.
#[derive(Deserialize)]
pub(super) struct Sibling {
    pub(super) rfilename: String,
    pub(super) size: Option<u64>,
}

/// What names and measures a file's contents.
pub(super) struct FileFacts {
    pub(super) etag: String,
    pub(super) bytes: u64,
}

/// Why an attempt failed: worth another one, or not.
enum Fault {
    MayPass(String),
    Final(HubError),
}

impl<'a> Client<'a> {
    pub(super) fn new(model: &'a HubModel, options: &'a HubOptions) -> Client<'a> {
        let agent = |max_redirects: u32| -> Agent {
            let mut config = Agent::config_builder()
                .http_status_as_error(false)
                .user_agent(concat!("metal-candle/", env!("CARGO_PKG_VERSION")))
                .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
                .max_redirects(max_redirects)
                .timeout_resolve(Some(options.connect_timeout))
                .timeout_connect(Some(options.connect_timeout))
                .timeout_recv_response(Some(options.stall_timeout))
                .timeout_per_read(Some(options.stall_timeout))
                .timeout_per_write(Some(options.stall_timeout));
            if !options.proxy_from_env {
                config = config.proxy(None);
            }
            config.build().into()
        };
        Client { model, options, agent: agent(MAX_REDIRECTS as u32), direct: agent(0) }
    }

    /// The commit and the files of the model's revision.
    pub(super) fn info(&self) -> Result<RepoInfo, HubError> {
        let base = format!("{}/api/models/{}", self.options.endpoint, self.model.id());
        let revision = self.model.revision().replace('/', "%2F");
        let url = format!("{base}/revision/{revision}?blobs=true");
        let body = self.repeat(|| {
            let response = self.get(&self.agent, &url, 0)?;
            match response.status().as_u16() {
                200 => read_text(response).map_err(Fault::MayPass),
                404 => Err(Fault::Final(self.missing_repo_or_revision(&base, &response))),
                status => Err(self.refused(&url, status, response.headers())),
            }
        })?;
        let info: RepoInfo =
            serde_json::from_str(&body).map_err(|error| HubError::bad_answer(&url, error.to_string()))?;
        if info.sha.is_empty()
            || info.sha.len() > 64
            || !info.sha.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            return Err(HubError::bad_answer(&url, "the commit is not a hash"));
        }
        Ok(info)
    }

    /// The name and size of a file's contents. Large files are redirected to other servers; the hub's own
    /// answer describes them.
    pub(super) fn facts(&self, commit: &str, file: &str) -> Result<FileFacts, HubError> {
        let url = self.file_url(commit, file);
        self.repeat(|| {
            let mut at = url.clone();
            for _ in 0..=MAX_REDIRECTS {
                let request = self.direct.head(&at).header("Accept-Encoding", "identity");
                let response =
                    self.authorised(request).call().map_err(|error| Fault::MayPass(error.to_string()))?;
                let (status, headers) = (response.status().as_u16(), response.headers());
                match status {
                    200 => return file_facts(&url, headers, "etag", "content-length"),
                    300..=399 if headers.contains_key("x-linked-etag") => {
                        return file_facts(&url, headers, "x-linked-etag", "x-linked-size");
                    }
                    300..=399 => at = self.same_host_redirect(&at, headers)?,
                    404 => return Err(Fault::Final(self.no_such_file(file))),
                    status => return Err(self.refused(&url, status, headers)),
                }
            }
            Err(Fault::Final(HubError::bad_answer(&url, "it redirects in a circle")))
        })
    }

    /// Downloads a file to `path`, continuing what is already there. On success the file has exactly the
    /// bytes that `facts` calls for, as many and, as far as its etag is a hash, the same.
    pub(super) fn download(
        &self,
        commit: &str,
        file: &str,
        facts: &FileFacts,
        path: &Path,
        progress: &mut dyn DownloadProgress,
    ) -> Result<(), HubError> {
        let url = self.file_url(commit, file);
        let cache_error = |action| move |source| HubError::cache(action, path, source);
        let options = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut part = options.map_err(|source| write_error(path, facts.bytes, source))?;
        let mut failures = 0;
        let mut checksum = Checksum::new(facts);
        checksum.update_from(&part).map_err(cache_error("read"))?;
        let mut begun_earlier = part.seek(SeekFrom::End(0)).map_err(cache_error("read"))? > 0;
        loop {
            let mut have = part.seek(SeekFrom::End(0)).map_err(cache_error("read"))?;
            let complete = have == facts.bytes;
            let mismatch = if complete { checksum.mismatch() } else { None };
            if complete && mismatch.is_none() {
                progress.update(file, have, facts.bytes);
                // Only complete contents may get the final name, also after a power failure.
                return part.sync_all().map_err(|source| write_error(path, 0, source));
            }
            if have > facts.bytes || mismatch.is_some() {
                part.set_len(0).map_err(cache_error("shorten"))?;
                have = part.seek(SeekFrom::Start(0)).map_err(cache_error("read"))?;
                checksum.restart();
            }
            // What an earlier run left may be damaged; what arrived whole would arrive again as it is.
            match mismatch {
                Some((expected, found)) if !begun_earlier => {
                    return Err(HubError::Corrupt { file: file.into(), expected, found });
                }
                _ => {}
            }
            begun_earlier &= have > 0;
            progress.update(file, have, facts.bytes);
            let (part, checksum) = (&mut part, &mut checksum);
            let mut transfer = Transfer { client: self, url: &url, file, facts, path, part, checksum };
            let reason = match transfer.attempt(have, progress) {
                Ok(()) => continue,
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::MayPass(reason)) => reason,
            };
            let received = part.metadata().map_err(cache_error("inspect"))?.len();
            failures = if received >= have + PROGRESS_BYTES { 1 } else { failures + 1 };
            if failures > self.options.retries {
                let (file, expected) = (file.to_string(), facts.bytes);
                return Err(HubError::Broken { file, received, expected, reason });
            }
            self.wait(failures);
        }
    }

    fn file_url(&self, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{file}", self.options.endpoint, self.model.id())
    }

    fn authorised<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.options.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn get(&self, agent: &Agent, url: &str, start: u64) -> Result<Response<Body>, Fault> {
        // Without compression, lengths mean the file's bytes.
        let mut request = self.authorised(agent.get(url).header("Accept-Encoding", "identity"));
        if start > 0 {
            request = request.header("Range", format!("bytes={start}-"));
        }
        request.call().map_err(|error| match error {
            ureq::Error::BadUri(reason) => Fault::Final(HubError::bad_answer(url, reason)),
            error => Fault::MayPass(error.to_string()),
        })
    }

    /// Repeats a small request while its faults may pass.
    fn repeat<T>(&self, mut attempt: impl FnMut() -> Result<T, Fault>) -> Result<T, HubError> {
        for failures in 1.. {
            let reason = match attempt() {
                Ok(value) => return Ok(value),
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::MayPass(reason)) => reason,
            };
            if failures > self.options.retries {
                return Err(HubError::Unreachable { endpoint: self.options.endpoint.clone(), reason });
            }
            self.wait(failures);
        }
        unreachable!("the loop ends by returning")
    }

    fn wait(&self, failures: u32) {
        std::thread::sleep(self.options.retry_wait.saturating_mul(1 << (failures - 1).min(6)));
    }

    /// The error for a status that is neither success nor 404.
    fn refused(&self, url: &str, status: u16, headers: &HeaderMap) -> Fault {
        let gated = header(headers, "x-error-code").is_some_and(|code| code == "GatedRepo");
        let hint = match (status, gated, self.options.token.is_some()) {
            (401 | 403, true, true) => {
                "it is gated: accept its licence on its page with the account of HF_TOKEN"
            }
            (401 | 403, true, false) => "it is gated: accept its licence on its page and set HF_TOKEN",
            (401 | 403, false, true) => {
                "it does not exist, or is private or gated and HF_TOKEN gives no access"
            }
            (401 | 403, false, false) => "it does not exist, or is private or gated: set HF_TOKEN",
            (408 | 429 | 500..=599, ..) => return Fault::MayPass(format!("status {status} from {url}")),
            _ => return Fault::Final(HubError::Status { url: url.into(), status }),
        };
        let (model, endpoint) = (self.model.id(), self.options.endpoint.clone());
        Fault::Final(HubError::Denied { model, endpoint, status, hint })
    }

    /// The hub says which of the two is missing; a mirror may not, so the model alone is asked for.
    fn missing_repo_or_revision(&self, base: &str, response: &Response<Body>) -> HubError {
        let (model, endpoint) = (self.model.id(), self.options.endpoint.clone());
        let repo_exists = match header(response.headers(), "x-error-code") {
            Some("RevisionNotFound") => true,
            Some("RepoNotFound") => false,
            _ => self.get(&self.agent, base, 0).is_ok_and(|response| response.status().is_success()),
        };
        if repo_exists {
            return HubError::RevisionNotFound { model, revision: self.model.revision().into() };
        }
        HubError::RepoNotFound { model, endpoint }
    }

    fn no_such_file(&self, file: &str) -> HubError {
        HubError::FileNotFound { model: self.model.to_string(), file: file.into() }
    }

    /// Where a renamed model now is. Redirects to other hosts without a description are refused: the token
    /// must not go there, and the file's identity is unknown.
    fn same_host_redirect(&self, from: &str, headers: &HeaderMap) -> Result<String, Fault> {
        let location = header(headers, "location").unwrap_or_default();
        let origin_end =
            from.find("://").and_then(|start| from[start + 3..].find('/').map(|slash| start + 3 + slash));
        let origin = &from[..origin_end.unwrap_or(from.len())];
        if location.starts_with('/') && !location.starts_with("//") {
            return Ok(format!("{origin}{location}"));
        }
        if location.strip_prefix(origin).is_some_and(|rest| rest.starts_with('/')) {
            return Ok(location.to_string());
        }
        let reason = format!("it redirects to `{location}` without describing the file");
        Err(Fault::Final(HubError::bad_answer(from, reason)))
    }
}

/// One file on its way into its partial file.
struct Transfer<'a> {
    client: &'a Client<'a>,
    url: &'a str,
    file: &'a str,
    facts: &'a FileFacts,
    path: &'a Path,
    part: &'a mut File,
    /// Of what `part` holds.
    checksum: &'a mut Checksum,
}

impl Transfer<'_> {
    /// Requests the bytes from `have` on and appends them. Success means the transfer ended in order, and
    /// the caller counts.
    fn attempt(&mut self, have: u64, progress: &mut dyn DownloadProgress) -> Result<(), Fault> {
        let response = self.client.get(&self.client.agent, self.url, have)?;
        let status = response.status().as_u16();
        let mut done = match status {
            // The whole file, whether we asked for it or the server ignores ranges.
            200 => self.restart()?,
            206 if self.continues(response.headers(), have)? => have,
            206 | 416 => {
                self.restart()?;
                return Err(Fault::MayPass("the server could not continue a partial file".into()));
            }
            404 => return Err(Fault::Final(self.client.no_such_file(self.file))),
            status => return Err(self.client.refused(self.url, status, response.headers())),
        };
        if let Some(length) = header(response.headers(), "content-length") {
            let announced = length.parse::<u64>().ok().and_then(|length| length.checked_add(done));
            if announced != Some(self.facts.bytes) {
                return Err(self.wrong_size(announced.unwrap_or(u64::MAX)));
            }
        }
        let mut reader = response.into_body().into_reader();
        let mut buffer = vec![0; TRANSFER_BYTES];
        while done < self.facts.bytes {
            let count = reader.read(&mut buffer).map_err(|error| Fault::MayPass(error.to_string()))?;
            if count == 0 {
                return Err(Fault::MayPass("the connection ended early".into()));
            }
            done += count as u64;
            if done > self.facts.bytes {
                return Err(self.wrong_size(done));
            }
            let needed = self.facts.bytes - done + count as u64;
            let written = self.part.write_all(&buffer[..count]);
            written.map_err(|source| Fault::Final(write_error(self.path, needed, source)))?;
            self.checksum.update(&buffer[..count]);
            progress.update(self.file, done, self.facts.bytes);
        }
        // Without an announced length the body may still go on.
        match reader.read(&mut buffer) {
            Ok(more) if more > 0 => Err(self.wrong_size(done + more as u64)),
            _ => Ok(()),
        }
    }

    fn restart(&mut self) -> Result<u64, Fault> {
        self.checksum.restart();
        let emptied = self.part.set_len(0).and_then(|()| self.part.seek(SeekFrom::Start(0)));
        emptied.map_err(|source| Fault::Final(HubError::cache("shorten", self.path, source)))
    }

    /// Whether a partial answer starts where our file ends. Its total must be the size that we know.
    fn continues(&mut self, headers: &HeaderMap, have: u64) -> Result<bool, Fault> {
        let range = header(headers, "content-range").unwrap_or_default();
        let Some((span, total)) = range.strip_prefix("bytes ").and_then(|range| range.split_once('/')) else {
            return Ok(false);
        };
        match total.parse() {
            Ok(total) if total != self.facts.bytes => Err(self.wrong_size(total)),
            _ => Ok(span.split('-').next().and_then(|start| start.parse().ok()) == Some(have)),
        }
    }

    /// Contents of another size are of no use: nothing is kept.
    fn wrong_size(&mut self, served: u64) -> Fault {
        // The error below matters more than a failure to empty the file, which is checked again later.
        self.part.set_len(0).ok();
        Fault::Final(HubError::WrongSize { file: self.file.into(), listed: self.facts.bytes, served })
    }
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn read_text(response: Response<Body>) -> Result<String, String> {
    let mut body = response.into_body();
    body.with_config().limit(MAX_INFO_BYTES).read_to_string().map_err(|error| error.to_string())
}

fn file_facts(url: &str, headers: &HeaderMap, etag: &str, size: &str) -> Result<FileFacts, Fault> {
    let bad = |reason: String| Fault::Final(HubError::bad_answer(url, reason));
    let raw = header(headers, etag).ok_or_else(|| bad(format!("the header {etag} is missing")))?;
    let name = raw.strip_prefix("W/").unwrap_or(raw).trim_matches('"');
    // It becomes a file name in the cache.
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if name.is_empty() || name.len() > 128 || !name.bytes().all(allowed) {
        return Err(bad(format!("the header {etag} is `{raw}`, which names no contents")));
    }
    let bytes = header(headers, size).and_then(|bytes| bytes.parse().ok());
    let bytes = bytes.ok_or_else(|| bad(format!("the header {size} does not tell the size")))?;
    Ok(FileFacts { etag: name.into(), bytes })
}

/// The error for a failed write of a partial file that still `needed` so many bytes.
fn write_error(path: &Path, needed: u64, source: std::io::Error) -> HubError {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match source.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => HubError::DiskFull { path: path.into(), needed },
        _ => HubError::cache("write", path, source),
    }
}
