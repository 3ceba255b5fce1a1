//! Redirects, tokens and statuses, against a network that says what the test wants.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::*;

type Headers = Vec<(&'static str, &'static str)>;

/// What the network will do.
enum Prepared {
    Answer(u16, Headers),
    Trouble(Trouble),
}

/// Gives prepared answers in order, and keeps what was asked.
#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<Prepared>>,
    asked: Mutex<Vec<(String, bool)>>,
}

impl Web for Arc<Script> {
    fn get(&self, request: &Request<'_>) -> Result<Response, Trouble> {
        let seen = (request.url.to_string(), request.token.is_some());
        self.asked.lock().unwrap().push(seen);
        let next = self.answers.lock().unwrap().pop_front();
        let (status, headers) = match next.expect("an answer for every request") {
            Prepared::Answer(status, headers) => (status, headers),
            Prepared::Trouble(trouble) => return Err(trouble),
        };
        let headers = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Ok(Response {
            status,
            headers: headers.collect::<BTreeMap<_, _>>(),
            body: Box::new(&b"[]"[..]),
        })
    }
}

const ASKED: Asked<'_> = Asked {
    repository: "org/name",
    revision: "v1",
    file: Some("a.json"),
};

/// What came of asking for JSON, and the requests with whether a token went along.
fn ask(answers: Vec<Prepared>) -> (Result<(), HubError>, Vec<(String, bool)>) {
    let script = Arc::new(Script {
        answers: Mutex::new(answers.into()),
        ..Script::default()
    });
    let settings = Settings::of_test("https://hub.example", Path::new("/c"), Some("hf_x"));
    let client = Client::new(Box::new(Arc::clone(&script)), settings);
    let got = client.json(&client.url("/api"), ASKED, &AtomicBool::new(false));
    let asked = script.asked.lock().unwrap().clone();
    (got.map(|_| ()), asked)
}

fn ok() -> Prepared {
    Prepared::Answer(200, vec![])
}

fn to(target: &'static str) -> Prepared {
    Prepared::Answer(302, vec![("location", target)])
}

#[test]
fn the_token_stays_with_the_endpoint() {
    let (got, asked) = ask(vec![
        to("/other"),
        to("https://files.example/x"),
        to("https://hub.example/y"),
        ok(),
    ]);
    assert!(got.is_ok(), "{got:?}");
    let expected = [
        ("https://hub.example/api", true),
        ("https://hub.example/other", true),
        ("https://files.example/x", false),
        ("https://hub.example/y", false),
    ];
    let expected = expected.map(|(url, token)| (url.to_owned(), token));
    assert_eq!(asked, expected, "not again after it went elsewhere");
    for target in ["https://hub.example:8443/x", "//hub.example.evil/x"] {
        let (_, asked) = ask(vec![to(target), ok()]);
        assert!(!asked[1].1, "{target}");
    }
}

#[test]
fn redirects_end_and_stay_encrypted() {
    let (got, asked) = ask((0..9).map(|_| to("/again")).collect());
    assert!(matches!(got, Err(HubError::Redirects { .. })), "{got:?}");
    assert_eq!(asked.len(), REDIRECTS + 1);
    let (got, asked) = ask(vec![to("http://hub.example/api")]);
    assert!(matches!(got, Err(HubError::Unencrypted { .. })), "{got:?}");
    assert_eq!(asked.len(), 1);
    for nowhere in [to("file:///etc/passwd"), Prepared::Answer(302, vec![])] {
        assert!(matches!(ask(vec![nowhere]).0, Err(HubError::Answer { .. })));
    }
}

#[test]
fn every_refusal_has_its_reason() {
    let refused = |status, headers: Headers| {
        let (got, asked) = ask(vec![Prepared::Answer(status, headers)]);
        assert_eq!(asked.len(), 1, "it is not asked again");
        got.unwrap_err()
    };
    let code = |text| vec![("x-error-code", text)];
    assert!(matches!(
        refused(401, code("GatedRepo")),
        HubError::Gated { token: true, .. }
    ));
    assert!(matches!(
        refused(403, code("GatedRepo")),
        HubError::Gated { .. }
    ));
    assert!(matches!(
        refused(404, code("RevisionNotFound")),
        HubError::NoRevision { .. }
    ));
    assert!(matches!(
        refused(404, code("EntryNotFound")),
        HubError::NoFile { .. }
    ));
    assert!(matches!(
        refused(404, code("RepoNotFound")),
        HubError::NoRepository { .. }
    ));
    assert!(matches!(refused(404, vec![]), HubError::NoFile { .. }));
    assert!(matches!(
        refused(401, vec![]),
        HubError::NoRepository { .. }
    ));
    let invalid = vec![(
        "x-error-message",
        "Invalid credentials in Authorization header",
    )];
    assert!(matches!(refused(401, invalid), HubError::BadToken { .. }));
    assert!(matches!(
        refused(403, vec![("x-error-message", "no")]),
        HubError::Forbidden { .. }
    ));
    assert!(matches!(
        refused(418, vec![]),
        HubError::Status { status: 418, .. }
    ));
    assert!(matches!(
        refused(200, vec![("content-encoding", "gzip")]),
        HubError::Answer { .. }
    ));
}

#[test]
fn what_passes_is_asked_again_but_not_for_ever() {
    let passing: [fn() -> Prepared; 4] = [
        || Prepared::Answer(503, vec![]),
        || Prepared::Answer(429, vec![("retry-after", "86400")]),
        || Prepared::Trouble(Trouble::Timeout),
        || Prepared::Trouble(Trouble::Cut(String::new())),
    ];
    for trouble in passing {
        let (got, asked) = ask(vec![trouble(), trouble(), ok()]);
        assert!(got.is_ok() && asked.len() == 3, "{got:?}");
        let (got, asked) = ask((0..4).map(|_| trouble()).collect());
        assert!(got.is_err() && asked.len() == 3, "{got:?}");
    }
    let (got, asked) = ask(vec![
        Prepared::Trouble(Trouble::Unreachable(String::new())),
        ok(),
    ]);
    assert!(matches!(got, Err(HubError::Unreachable { .. })) && asked.len() == 1);
}

#[test]
fn the_next_page_is_found() {
    assert_eq!(
        next_page("<https://a/b?c=1>; rel=\"next\""),
        Some("https://a/b?c=1")
    );
    assert_eq!(
        next_page("<https://a/0>; rel=\"prev\", <https://a/2>; rel=\"next\""),
        Some("https://a/2")
    );
    for none in ["", "<https://a/0>; rel=\"prev\"", "https://a"] {
        assert_eq!(next_page(none), None, "{none}");
    }
}
