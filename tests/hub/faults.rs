//! Networks and servers that fail, lie, or ask for a token.

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use neuroconv_fixtures::hub::{Fault, Times};

use super::{NAME, Net, WEIGHTS, of_weights};
use crate::place::{assert_code, stderr};

/// Parts of the paths of a revision, of a list, and of files.
const INFO: &str = "/revision/";
const TREE: &str = "/tree/";
const FILE: &str = "/resolve/";

#[test]
fn what_goes_wrong_on_the_way_is_made_good() {
    const MIB: usize = 1 << 20;
    let long = Duration::from_secs(5);
    let some = |fault: Fault| vec![(WEIGHTS, fault, 1)];
    for (faults, once) in [
        (vec![(WEIGHTS, Fault::Cut(MIB), 2)], true),
        (vec![(WEIGHTS, Fault::Stall(MIB, long), 1)], false),
        (vec![(WEIGHTS, Fault::Status(503, vec![]), 2)], true),
        (vec![("/api/models", Fault::Status(500, vec![]), 2)], true),
        (vec![(INFO, Fault::Stall(3, long), 1)], true),
        (vec![(TREE, Fault::Cut(100), 1)], true),
        (some(Fault::Status(429, vec![("Retry-After", "1")])), true),
        // The second answer has nothing to do with what is there already.
        (
            vec![
                (WEIGHTS, Fault::IgnoreRange, 1),
                (WEIGHTS, Fault::Cut(MIB), 1),
            ],
            false,
        ),
        (
            vec![
                (WEIGHTS, Fault::OtherRange, 1),
                (WEIGHTS, Fault::Cut(MIB), 1),
            ],
            false,
        ),
        (
            vec![
                (WEIGHTS, Fault::OtherSize, 1),
                (WEIGHTS, Fault::Cut(MIB), 1),
            ],
            false,
        ),
        (
            vec![
                (WEIGHTS, Fault::Status(416, vec![]), 1),
                (WEIGHTS, Fault::Cut(MIB), 1),
            ],
            false,
        ),
    ] {
        let net = Net::new();
        for (part, fault, times) in faults.clone() {
            net.hub.fail(part, fault, Times::Left(times));
        }
        let output = net.fetch(NAME, &[]);
        assert_code(&output, 0);
        net.assert_complete();
        let requests = net.hub.requests();
        let sent: u64 = of_weights(&requests)
            .iter()
            .map(|request| request.sent)
            .sum();
        assert!(
            !once || sent == net.size,
            "{faults:?}: {sent} bytes of {}",
            net.size
        );
    }
}

/// Part of a path, what happens there, the exit code, and what is said.
type Case = (&'static str, Fault, i32, &'static str);

/// Every fault ends in its own words with something to do, and nothing is taken.
fn assert_refused(cases: Vec<Case>) {
    for (part, fault, code, says) in cases {
        let net = Net::new();
        net.hub.fail(part, fault.clone(), Times::Always);
        let output = net.fetch(NAME, &[]);
        assert_code(&output, code);
        let said = stderr(&output);
        assert!(said.contains(says), "{fault:?}: {said}");
        assert!(
            !said.contains('\u{1b}') && said.contains("hint: "),
            "{fault:?}: {said}"
        );
        assert!(
            !net.snapshot().join("model.safetensors").exists(),
            "{fault:?}"
        );
    }
}

fn replace(from: &str, to: &str) -> Fault {
    Fault::Replace(from.to_owned(), to.to_owned())
}

#[test]
fn what_is_not_as_listed_is_not_taken() {
    let elsewhere = Net::new();
    let to = |target: &str| Fault::Redirect(target.to_owned());
    let away = to(&format!("{}/x", elsewhere.hub.endpoint()));
    let header = |name, value: &str| Fault::Header(name, value.to_owned());
    assert_refused(vec![
        (WEIGHTS, Fault::Damage, 7, "is listed"),
        (WEIGHTS, Fault::Longer, 7, "bytes are listed"),
        (WEIGHTS, Fault::Cut(0), 7, "0 of"),
        (FILE, header("X-Linked-Size", "3"), 7, "3 were sent"),
        (
            FILE,
            header("X-Linked-ETag", "\"../../x\""),
            7,
            "its tag is",
        ),
        (
            FILE,
            header("X-Repo-Commit", &"0a".repeat(20)),
            7,
            "of the commit",
        ),
        (FILE, to(FILE), 7, "redirected more than 5 times"),
        (FILE, away, 7, "status 404"),
        (FILE, to("file:///etc/passwd"), 7, "leads nowhere"),
    ]);
    let requests = elsewhere.hub.requests();
    assert!(!requests.is_empty());
    assert!(
        requests
            .iter()
            .all(|request| request.authorization.is_none())
    );
}

#[test]
fn every_refusal_of_a_hub_has_its_own_words() {
    let status = |status, code| Fault::Status(status, vec![("X-Error-Code", code)]);
    let message = vec![("X-Error-Message", "off limits")];
    assert_refused(vec![
        (FILE, status(404, "EntryNotFound"), 7, "has no file"),
        (
            INFO,
            status(404, "RevisionNotFound"),
            7,
            "has no revision `main`",
        ),
        (INFO, status(404, "RepoNotFound"), 7, "has no model"),
        (INFO, status(401, "GatedRepo"), 7, "is gated"),
        (INFO, Fault::Status(401, vec![]), 7, "has no model"),
        (INFO, Fault::Status(403, message), 7, "refuses"),
        (INFO, Fault::Status(418, vec![]), 7, "status 418"),
    ]);
}

#[test]
fn what_a_hub_says_of_a_model_is_checked() {
    let elsewhere = "<http://127.0.0.1:1/x>; rel=\"next\"".to_owned();
    let config = |to: &str| replace("config.json", to);
    let weights = |to: &str| replace("model.safetensors", to);
    assert_refused(vec![
        (
            INFO,
            replace("\"sha\":\"", "\"sha\":\"../"),
            7,
            "names the commit",
        ),
        (INFO, replace("{", "["), 7, "describes no repository"),
        (INFO, Fault::Spaces(17 << 20), 7, "more than 16777216 bytes"),
        (TREE, config("../../config.json"), 7, "leads elsewhere"),
        (TREE, config("/etc/config.json"), 7, "is absolute"),
        (TREE, config("a\\u0000"), 7, "a character"),
        (
            TREE,
            replace("\"oid\":\"", "\"oid\":\"../"),
            7,
            "its hash is none",
        ),
        (TREE, Fault::Header("Link", elsewhere), 7, "another server"),
        (TREE, weights("pytorch_model.bin"), 5, "pickle"),
        (TREE, weights("model.gguf"), 5, "GGUF files only"),
        (
            TREE,
            replace("\"config.json", "\"x.json"),
            5,
            "has no `config.json`",
        ),
    ]);
}

#[test]
fn an_interrupted_download_goes_on_where_it_was() {
    for signal in ["INT", "KILL"] {
        let net = Net::new();
        net.hub.fail(
            WEIGHTS,
            Fault::Stall(1 << 20, Duration::from_mins(1)),
            Times::Left(1),
        );
        let mut command = net.command(&["generate", NAME, "-p", "the", "-n", "1"]);
        command
            .env("HF_HUB_DOWNLOAD_TIMEOUT", "60")
            .stderr(Stdio::piped())
            .stdout(Stdio::null());
        let child = command.spawn().unwrap();
        let start = Instant::now();
        while net.incomplete().is_none_or(|(_, size)| size < 1 << 20) {
            assert!(
                start.elapsed() < Duration::from_mins(1),
                "the download does not begin"
            );
            sleep(Duration::from_millis(20));
        }
        let pid = child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", signal, &pid])
                .status()
                .unwrap()
                .success()
        );
        let output = child.wait_with_output().unwrap();
        if signal == "INT" {
            assert_code(&output, 130);
            assert!(
                stderr(&output).contains("the same command"),
                "{}",
                stderr(&output)
            );
        }
        let (_, kept) = net.incomplete().unwrap();
        net.hub.requests();
        assert_code(&net.fetch(NAME, &[]), 0);
        let requests = net.hub.requests();
        let requests = of_weights(&requests);
        assert_eq!(requests.len(), 1);
        assert_eq!(requests[0].range, Some(format!("bytes={kept}-")));
        assert_eq!(requests[0].sent, net.size - kept, "no byte twice");
        net.assert_complete();
    }
}

#[test]
fn leftovers_that_are_wrong_are_fetched_anew() {
    let net = Net::new();
    net.hub
        .fail(WEIGHTS, Fault::Status(418, vec![]), Times::Always);
    net.hub.fail(WEIGHTS, Fault::Cut(1 << 20), Times::Left(1));
    assert_code(&net.fetch(NAME, &[]), 7);
    let (path, _) = net.incomplete().unwrap();
    let mut bytes = fs_err::read(&path).unwrap();
    bytes[0] ^= 1;
    fs_err::write(&path, bytes).unwrap();
    net.hub.fail(WEIGHTS, Fault::Cut(usize::MAX), Times::Always);
    assert_code(&net.fetch(NAME, &[]), 0);
    net.assert_complete();
}

#[test]
fn an_endpoint_that_is_not_there_is_told_at_once() {
    let net = Net::new();
    let start = Instant::now();
    for (endpoint, code, says) in [
        ("http://127.0.0.1:1", 7, "cannot reach 127.0.0.1:1"),
        ("hub.example", 2, "HF_ENDPOINT"),
    ] {
        let output = net.fetch(NAME, &[("HF_ENDPOINT", endpoint)]);
        assert_code(&output, code);
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
    }
    assert!(start.elapsed() < Duration::from_secs(5));
}
