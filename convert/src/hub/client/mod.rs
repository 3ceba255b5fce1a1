//! Requests to an endpoint, and what its answers mean.
//!
//! Owns redirects, who sees the token, what a status says, and when something is asked again. Knows
//! neither what a model is, nor a cache. The rules: the token goes to the endpoint's own server and, once
//! another server was redirected to, nowhere; what was asked with encryption is never answered without.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::HubError;
use super::names::shown;
use super::settings::{Patience, Settings};
use super::url::Url;
use super::web::{Request, Response, Trouble, Web};

/// Redirects that are followed.
const REDIRECTS: usize = 5;
/// Bytes of an answer in JSON at most.
pub(crate) const ANSWER_BYTES: u64 = 16 << 20;
/// How long nobody looks whether the user has lost patience.
pub(crate) const NAP: Duration = Duration::from_millis(100);

/// What is asked, for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) repository: &'a str,
    pub(crate) revision: &'a str,
    pub(crate) file: Option<&'a str>,
}

impl Asked<'_> {
    fn what(&self) -> String {
        match self.file {
            Some(file) => format!("`{}/{file}`", self.repository),
            None => format!("`{}`", self.repository),
        }
    }
}

/// Asks an endpoint.
pub(crate) struct Client {
    web: Box<dyn Web>,
    settings: Settings,
}

impl Client {
    pub(crate) fn new(web: Box<dyn Web>, settings: Settings) -> Self {
        Client { web, settings }
    }

    /// The host that is asked first.
    pub(crate) fn host(&self) -> &str {
        self.settings.endpoint.host()
    }

    /// The address of `path`, which starts with a slash and is encoded.
    pub(crate) fn url(&self, path: &str) -> Url {
        self.settings.endpoint.with(path)
    }

    pub(crate) fn patience(&self) -> Patience {
        self.settings.patience
    }

    /// Whether the endpoint's own server is asked at `url`.
    pub(crate) fn is_endpoint(&self, url: &Url) -> bool {
        url.same_server(&self.settings.endpoint)
    }

    /// The body of an answer in JSON, and where it goes on. Asks again where that may help.
    pub(crate) fn json(
        &self,
        url: &Url,
        asked: Asked<'_>,
        interrupted: &AtomicBool,
    ) -> Result<(Vec<u8>, Option<String>), HubError> {
        let mut tries = Tries::new(self.patience());
        loop {
            match self.try_json(url, asked) {
                Err(error) if error.passes() => tries.again(error, interrupted)?,
                other => return other,
            }
        }
    }

    fn try_json(&self, url: &Url, asked: Asked<'_>) -> Result<(Vec<u8>, Option<String>), HubError> {
        let answer = self.get(url, None, asked, self.settings.answer_timeout)?;
        let mut bytes = Vec::new();
        let mut body = answer.response.body.take(ANSWER_BYTES + 1);
        body.read_to_end(&mut bytes).map_err(|error| {
            let trouble = Trouble::of_body(error);
            failed(trouble, &answer.host, self.settings.answer_timeout)
        })?;
        if bytes.len() as u64 > ANSWER_BYTES {
            return Err(HubError::TooLarge {
                host: answer.host,
                what: asked.what(),
                limit: ANSWER_BYTES,
            });
        }
        let next = answer
            .response
            .headers
            .get("link")
            .and_then(|link| next_page(link));
        Ok((bytes, next.map(str::to_owned)))
    }

    /// Asks for a file, or for a range of its bytes. Asks once.
    pub(crate) fn file(
        &self,
        url: &Url,
        range: Option<&str>,
        asked: Asked<'_>,
    ) -> Result<Answer, HubError> {
        self.get(url, range, asked, self.settings.download_timeout)
    }

    /// What reading the body of a file met with.
    pub(crate) fn broken(&self, host: &str, error: std::io::Error) -> HubError {
        failed(
            Trouble::of_body(error),
            host,
            self.settings.download_timeout,
        )
    }

    /// One request, and the redirects after it.
    fn get(
        &self,
        url: &Url,
        range: Option<&str>,
        asked: Asked<'_>,
        timeout: Duration,
    ) -> Result<Answer, HubError> {
        let mut url = url.clone();
        let mut token = self.settings.token.as_ref();
        let mut said = Said::default();
        for _ in 0..=REDIRECTS {
            if !self.is_endpoint(&url) {
                token = None;
            }
            let request = Request {
                url: &url,
                token,
                range,
                timeout,
            };
            let response = self.web.get(&request);
            let response = response.map_err(|trouble| failed(trouble, url.host(), timeout))?;
            let found = said.take(&response);
            if !matches!(response.status, 301 | 302 | 303 | 307 | 308) {
                let answer = Answer {
                    host: url.host().to_owned(),
                    response,
                    said,
                };
                return self.judged(answer, asked, token.is_some());
            }
            let target = found.and_then(|target| url.join(&target));
            let target = target.ok_or_else(|| self.answer(asked, "a redirect leads nowhere"))?;
            if self.settings.endpoint.is_encrypted() && !target.is_encrypted() {
                return Err(HubError::Unencrypted {
                    host: self.host().to_owned(),
                    to: shown(target.host()),
                    what: asked.what(),
                });
            }
            url = target;
        }
        Err(HubError::Redirects {
            host: self.host().to_owned(),
            what: asked.what(),
            limit: REDIRECTS,
        })
    }

    /// An answer whose status says that it is one, or what the status says.
    fn judged(&self, answer: Answer, asked: Asked<'_>, token: bool) -> Result<Answer, HubError> {
        let status = answer.response.status;
        let encoding = answer.response.headers.get("content-encoding");
        if let Some(other) = encoding.filter(|other| !other.eq_ignore_ascii_case("identity")) {
            return Err(self.answer(asked, &format!("it is encoded as {}", shown(other))));
        }
        if matches!(status, 200 | 206 | 416) {
            return Ok(answer);
        }
        Err(self.refusal(&answer, asked, token))
    }

    /// What a status says that brings no bytes.
    fn refusal(&self, answer: &Answer, asked: Asked<'_>, token: bool) -> HubError {
        let status = answer.response.status;
        let repository = asked.repository.to_owned();
        let host = self.host().to_owned();
        let header = |name: &str| answer.response.headers.get(name).map(String::as_str);
        let words = header("x-error-message").unwrap_or_default();
        let at_endpoint = answer.host == host;
        match (status, header("x-error-code").unwrap_or_default()) {
            (_, "GatedRepo") => HubError::Gated {
                host,
                repository,
                token,
            },
            (_, "RevisionNotFound") => HubError::NoRevision {
                repository,
                revision: asked.revision.to_owned(),
            },
            (_, "EntryNotFound") => HubError::NoFile {
                repository,
                file: asked.file.unwrap_or_default().to_owned(),
            },
            (401, _) if token && words.contains("Invalid") => HubError::BadToken { host },
            (_, "RepoNotFound") | (401, _) => HubError::NoRepository {
                host,
                repository,
                token,
            },
            (404, _) if at_endpoint => match asked.file {
                Some(file) => HubError::NoFile {
                    repository,
                    file: file.to_owned(),
                },
                None => HubError::NoRepository {
                    host,
                    repository,
                    token,
                },
            },
            (403, _) if at_endpoint => HubError::Forbidden {
                detail: if words.is_empty() {
                    "it says no more".to_owned()
                } else {
                    shown(words)
                },
                host,
                repository,
            },
            (429, _) => HubError::TooManyRequests {
                host: answer.host.clone(),
                wait: header("retry-after").and_then(|text| text.trim().parse().ok()),
            },
            _ => HubError::Status {
                host: answer.host.clone(),
                status,
                what: asked.what(),
            },
        }
    }

    /// Something that is no answer to what was asked.
    pub(crate) fn answer(&self, asked: Asked<'_>, detail: &str) -> HubError {
        HubError::Answer {
            host: self.host().to_owned(),
            what: asked.what(),
            detail: detail.to_owned(),
        }
    }
}

/// What the endpoint said of a file before it redirected to where the bytes are.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) etag: Option<String>,
    pub(crate) size: Option<String>,
    pub(crate) commit: Option<String>,
}

impl Said {
    /// Keeps what is said first; gives the target of a redirect.
    fn take(&mut self, response: &Response) -> Option<String> {
        let header = |name: &str| response.headers.get(name).cloned();
        self.etag = self.etag.take().or_else(|| header("x-linked-etag"));
        self.size = self.size.take().or_else(|| header("x-linked-size"));
        self.commit = self.commit.take().or_else(|| header("x-repo-commit"));
        header("location")
    }
}

/// An answer with a body.
pub(crate) struct Answer {
    /// Who gave it.
    pub(crate) host: String,
    pub(crate) response: Response,
    pub(crate) said: Said,
}

/// Counts what was tried, and waits in between.
pub(crate) struct Tries {
    patience: Patience,
    made: u32,
}

impl Tries {
    pub(crate) fn new(patience: Patience) -> Self {
        Tries { patience, made: 0 }
    }

    /// Something came: patience is as it was in the beginning.
    pub(crate) fn forget(&mut self) {
        self.made = 0;
    }

    /// Waits until the next attempt, or gives `error` back where there is none.
    pub(crate) fn again(
        &mut self,
        error: HubError,
        interrupted: &AtomicBool,
    ) -> Result<(), HubError> {
        self.made += 1;
        if self.made >= self.patience.attempts {
            return Err(error);
        }
        let own = self
            .patience
            .first
            .saturating_mul(1 << (self.made - 1).min(16));
        let asked = match &error {
            HubError::TooManyRequests {
                wait: Some(seconds),
                ..
            } => Duration::from_secs(*seconds),
            _ => Duration::ZERO,
        };
        let until = Instant::now() + own.max(asked).min(self.patience.longest);
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            if interrupted.load(Ordering::Relaxed) {
                return Err(HubError::Interrupted {
                    file: None,
                    have: 0,
                });
            }
            sleep(left.min(NAP));
        }
        Ok(())
    }
}

fn failed(trouble: Trouble, host: &str, timeout: Duration) -> HubError {
    let host = host.to_owned();
    match trouble {
        Trouble::Unreachable(detail) => HubError::Unreachable { host, detail },
        Trouble::Cut(detail) => HubError::Cut { host, detail },
        Trouble::Timeout => HubError::Timeout {
            host,
            seconds: timeout.as_secs_f64(),
        },
    }
}

/// The address with `rel="next"` in a header `Link`.
fn next_page(link: &str) -> Option<&str> {
    link.split(',').find_map(|part| {
        let (address, rest) = part.trim().strip_prefix('<')?.split_once('>')?;
        rest.contains("rel=\"next\"").then_some(address)
    })
}

#[cfg(test)]
mod tests;
