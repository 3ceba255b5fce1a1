//! One exchange over HTTP: a request for bytes, a status, headers and a body.
//!
//! Owns the interface that the rest of the hub asks through, so that tests can stand in for a network, and
//! its one implementation over `ureq`. Follows no redirect and judges no status: which host may see the
//! token, and what an answer means, is decided in [`super::client`].

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::time::Duration;

use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use super::settings::{Settings, Token};
use super::url::Url;
use super::{HubError, names};

/// Asks one server for bytes.
pub(crate) trait Web: Send + Sync {
    /// Makes one request.
    fn get(&self, request: &Request<'_>) -> Result<Response, Trouble>;
}

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) url: &'a Url,
    /// Sent as it is: whoever asks has looked where to.
    pub(crate) token: Option<&'a Token>,
    /// Value of the header `Range`.
    pub(crate) range: Option<&'a str>,
    /// How long nothing may come.
    pub(crate) timeout: Duration,
}

/// What came back.
pub(crate) struct Response {
    pub(crate) status: u16,
    /// By names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Box<dyn Read>,
}

/// Why nothing came back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// No connection could be made.
    Unreachable(String),
    /// Nothing came for too long.
    Timeout,
    /// The connection ended, or what came is no HTTP.
    Cut(String),
}

impl Trouble {
    /// What reading from a body met with.
    pub(crate) fn of_body(error: io::Error) -> Self {
        match trouble(error.into()) {
            Trouble::Unreachable(detail) => Trouble::Cut(detail),
            trouble => trouble,
        }
    }
}

/// The network.
pub(crate) struct Network {
    agent: Agent,
}

impl Network {
    /// A client that trusts the certificates that `settings` name, or the built-in ones.
    pub(crate) fn new(settings: &Settings) -> Result<Self, HubError> {
        let roots = match &settings.certificates {
            None => RootCerts::WebPki,
            Some(path) => {
                let bytes =
                    fs_err::read(path).map_err(HubError::file("read certificates in", path))?;
                let found: Vec<Certificate<'static>> = parse_pem(&bytes)
                    .filter_map(|item| match item {
                        Ok(PemItem::Certificate(certificate)) => Some(certificate),
                        _ => None,
                    })
                    .collect();
                if found.is_empty() {
                    return Err(HubError::Setting {
                        variable: "SSL_CERT_FILE",
                        reason: format!("`{}` holds no certificate", path.display()),
                    });
                }
                RootCerts::new_with_certs(&found)
            }
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // A range of compressed bytes would be a range of something else.
            .accept_encoding("identity")
            .user_agent(concat!("neuroconv/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_resolve(Some(settings.answer_timeout))
            .timeout_connect(Some(settings.answer_timeout));
        Ok(Network {
            agent: config.build().into(),
        })
    }
}

impl Web for Network {
    fn get(&self, request: &Request<'_>) -> Result<Response, Trouble> {
        let mut ask = self.agent.get(request.url.to_string());
        if let Some(token) = request.token {
            ask = ask.header("Authorization", token.header());
        }
        if let Some(range) = request.range {
            ask = ask.header("Range", range);
        }
        let ask = ask.config().timeout_per_read(Some(request.timeout)).build();
        let (parts, body) = ask.call().map_err(trouble)?.into_parts();
        let text = |value: &ureq::http::HeaderValue| {
            String::from_utf8_lossy(value.as_bytes()).into_owned()
        };
        let headers = parts.headers.iter();
        Ok(Response {
            status: parts.status.as_u16(),
            headers: headers
                .map(|(name, value)| (name.as_str().to_owned(), text(value)))
                .collect(),
            body: Box::new(body.into_reader()),
        })
    }
}

/// What a request met with before its body.
fn trouble(error: ureq::Error) -> Trouble {
    use std::io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof,
    };
    use ureq::{Error, Timeout};
    match error {
        Error::Timeout(Timeout::Connect | Timeout::Resolve) => {
            Trouble::Unreachable("no connection came about in time".to_owned())
        }
        Error::Timeout(_) => Trouble::Timeout,
        Error::Io(error) => match error.kind() {
            TimedOut => Trouble::Timeout,
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => {
                Trouble::Cut(names::shown(&error.to_string()))
            }
            // Refused connections, names that are not known, certificates that are not trusted.
            _ => Trouble::Unreachable(names::shown(&error.to_string())),
        },
        Error::Protocol(_) | Error::LargeResponseHeader(..) => {
            Trouble::Cut(names::shown(&error.to_string()))
        }
        error => Trouble::Unreachable(names::shown(&error.to_string())),
    }
}
