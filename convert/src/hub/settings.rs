//! The environment that every program of the hub's family knows, read once.
//!
//! Owns the variables and their meaning. Given as a function, so that tests need no process of their own.
//! Proxies (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`) are read by the HTTP client itself.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HubError;
use super::reference::HUB;
use super::url::Url;

/// Seconds without a byte after which a request is given up, unless the environment says.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The first wait before a request is made again; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The longest wait, also where a server asks for more.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// How often a request is made before it is given up; bytes that come count anew.
const ATTEMPTS: u32 = 5;

/// A secret that proves who asks. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(String);

impl Token {
    /// The value of the header that carries it.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// How often, and after which waits, something is tried again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) attempts: u32,
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}

/// Where the hub is, where its files go, and who asks.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) endpoint: Url,
    pub(crate) cache: PathBuf,
    pub(crate) token: Option<Token>,
    pub(crate) offline: bool,
    /// Whether snapshots hold links; else they hold the files.
    pub(crate) links: bool,
    pub(crate) answer_timeout: Duration,
    pub(crate) download_timeout: Duration,
    /// A file of certificates to trust instead of the built-in ones.
    pub(crate) certificates: Option<PathBuf>,
    pub(crate) patience: Patience,
}

impl Settings {
    /// Reads the variables that `get` knows. `offline` asks for it whatever they say.
    ///
    /// # Errors
    ///
    /// Where a variable makes no sense, or the file of a token cannot be read.
    pub fn from_env(get: impl Fn(&str) -> Option<String>, offline: bool) -> Result<Self, HubError> {
        let get = |name: &str| get(name).filter(|value| !value.trim().is_empty());
        let is_set = |name: &str| get(name).is_some_and(|value| is_true(&value));
        let user = get("HOME").map(PathBuf::from);
        let path = |name: &str| get(name).map(|text| expanded(&text, user.as_deref()));
        let home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(user.as_ref()?.join(".cache").join("huggingface")));
        let home = home.ok_or_else(|| HubError::Setting {
            variable: "HF_HOME",
            reason: "neither it nor HOME is set, so there is no place for the cache".to_owned(),
        })?;
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| HUB.to_owned());
        let endpoint = Url::parse(endpoint.trim().trim_end_matches('/')).ok_or_else(|| {
            let reason = "it is no address that starts with https:// or http://".to_owned();
            HubError::Setting {
                variable: "HF_ENDPOINT",
                reason,
            }
        })?;
        let token = if is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            None
        } else {
            let file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
            let typed = get("HF_TOKEN").or_else(|| get("HUGGING_FACE_HUB_TOKEN"));
            typed.map_or_else(|| token_in(&file), |token| Ok(Some(token)))?
        };
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        Ok(Settings {
            endpoint,
            cache: cache.unwrap_or_else(|| home.join("hub")),
            token: token.map(|text| checked(&text)).transpose()?,
            offline: offline || is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
            links: !is_set("HF_HUB_DISABLE_SYMLINKS"),
            answer_timeout: seconds("HF_HUB_ETAG_TIMEOUT", get)?,
            download_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT", get)?,
            certificates: path("SSL_CERT_FILE"),
            patience: Patience {
                attempts: ATTEMPTS,
                first: FIRST_WAIT,
                longest: LONGEST_WAIT,
            },
        })
    }

    /// The address of the hub, without a slash at its end.
    pub fn endpoint(&self) -> String {
        self.endpoint.to_string()
    }

    /// Whether nothing is fetched.
    pub fn offline(&self) -> bool {
        self.offline
    }

    /// The folder of the cache.
    pub fn cache(&self) -> &Path {
        &self.cache
    }
}

/// The words that the hub's own client takes for yes.
fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.trim().to_uppercase().as_str())
}

/// A path that may begin with the sign of the home folder.
fn expanded(text: &str, home: Option<&Path>) -> PathBuf {
    match (text.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(text),
    }
}

fn seconds(
    variable: &'static str,
    get: impl Fn(&str) -> Option<String>,
) -> Result<Duration, HubError> {
    let Some(text) = get(variable) else {
        return Ok(TIMEOUT);
    };
    let seconds: Option<f64> = text.trim().parse().ok();
    let seconds = seconds.filter(|seconds| *seconds > 0.0 && *seconds <= 86_400.0);
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| HubError::Setting {
            variable,
            reason: "it is no number of seconds between 0 and a day".to_owned(),
        })
}

/// The token in a file, unless there is none.
fn token_in(file: &Path) -> Result<Option<String>, HubError> {
    match fs_err::read_to_string(file) {
        Ok(text) => Ok(Some(text).filter(|text| !text.trim().is_empty())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(HubError::file("read the token in", file)(error)),
    }
}

fn checked(text: &str) -> Result<Token, HubError> {
    let text = text.trim();
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(Token(text.to_owned()));
    }
    Err(HubError::Setting {
        variable: "HF_TOKEN",
        reason: "the token, there or in its file, has characters that no token has".to_owned(),
    })
}

#[cfg(test)]
impl Settings {
    /// A hub of a test: nothing waits long.
    pub(crate) fn of_test(endpoint: &str, cache: &Path, token: Option<&str>) -> Self {
        Settings {
            endpoint: Url::parse(endpoint).unwrap(),
            cache: cache.to_owned(),
            token: token.map(|text| Token(text.to_owned())),
            offline: false,
            links: true,
            answer_timeout: TIMEOUT,
            download_timeout: TIMEOUT,
            certificates: None,
            patience: Patience {
                attempts: 3,
                first: Duration::from_millis(1),
                longest: Duration::from_millis(5),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(env: &[(&str, &str)]) -> Result<Settings, HubError> {
        let get = |name: &str| {
            let found = env.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Settings::from_env(get, false)
    }

    #[test]
    fn the_cache_is_where_other_programs_have_it() {
        for (env, cache) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (
                &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")],
                "/x/huggingface/hub",
            ),
            (&[("HOME", "/h"), ("HF_HOME", "/f")], "/f/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "~/f")], "/h/f/hub"),
            (
                &[("HOME", "/h"), ("HF_HOME", "")],
                "/h/.cache/huggingface/hub",
            ),
            (
                &[("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "/old")],
                "/old",
            ),
            (
                &[
                    ("HF_HOME", "/f"),
                    ("HUGGINGFACE_HUB_CACHE", "/old"),
                    ("HF_HUB_CACHE", "/c"),
                ],
                "/c",
            ),
        ] {
            assert_eq!(read(env).unwrap().cache, PathBuf::from(cache), "{env:?}");
        }
        assert!(matches!(
            read(&[]),
            Err(HubError::Setting {
                variable: "HF_HOME",
                ..
            })
        ));
    }

    #[test]
    fn tokens_are_found_in_order_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        let token = |env: &[(&str, &str)]| {
            let settings = read(&[&[("HF_HOME", home)], env].concat()).unwrap();
            assert!(!format!("{settings:?}").contains("hf_"));
            settings.token.map(|token| token.header())
        };
        assert_eq!(token(&[]), None);
        fs_err::write(dir.path().join("token"), "hf_file\n").unwrap();
        fs_err::write(dir.path().join("other"), "hf_other").unwrap();
        let other = dir.path().join("other");
        let at = ("HF_TOKEN_PATH", other.to_str().unwrap());
        let (old, new) = (("HUGGING_FACE_HUB_TOKEN", "hf_old"), ("HF_TOKEN", "hf_new"));
        assert_eq!(token(&[]).unwrap(), "Bearer hf_file");
        assert_eq!(token(&[at]).unwrap(), "Bearer hf_other");
        assert_eq!(token(&[at, old]).unwrap(), "Bearer hf_old");
        assert_eq!(token(&[at, old, new]).unwrap(), "Bearer hf_new");
        assert_eq!(
            token(&[new, ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "yes")]),
            None
        );
        let split = read(&[("HF_HOME", home), ("HF_TOKEN", "hf_secret\nX: y")]).unwrap_err();
        assert!(!format!("{split}{split:?}").contains("hf_secret"));
    }

    #[test]
    fn offline_has_many_words() {
        for (variable, value, expected) in [
            ("HF_HUB_OFFLINE", "1", true),
            ("HF_HUB_OFFLINE", "on", true),
            ("TRANSFORMERS_OFFLINE", "True", true),
            ("HF_HUB_OFFLINE", "0", false),
            ("HF_HUB_OFFLINE", "", false),
        ] {
            let settings = read(&[("HOME", "/h"), (variable, value)]).unwrap();
            assert_eq!(settings.offline, expected, "{variable}={value}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (variable, value) in [
            ("HF_ENDPOINT", "huggingface.co"),
            ("HF_ENDPOINT", "ftp://huggingface.co"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "soon"),
            ("HF_HUB_ETAG_TIMEOUT", "-1"),
            ("HF_HUB_ETAG_TIMEOUT", "0"),
        ] {
            let refused = read(&[("HOME", "/h"), (variable, value)]).unwrap_err();
            assert!(refused.to_string().starts_with(variable), "{refused}");
        }
        let mirror = read(&[("HOME", "/h"), ("HF_ENDPOINT", "http://m:8/a/")]).unwrap();
        assert_eq!(mirror.endpoint(), "http://m:8/a");
    }
}
