//! How models are named, and who sees the token.

use neuroconv_fixtures::hub::Repository;

use super::{NAME, Net, TOKEN};
use crate::place::{assert_code, model, stderr, stdout};

#[test]
fn paths_come_first_and_names_are_checked() {
    let net = Net::new();
    let run = |args: &[&str], code: i32, says: &str| {
        let output = net.run(args);
        assert_code(&output, code);
        assert!(
            stderr(&output).contains(says),
            "{args:?}: {}",
            stderr(&output)
        );
    };
    run(
        &["inspect", "org/fable@main", "--revision", "v1"],
        2,
        "and --revision another",
    );
    run(
        &["inspect", "hf://datasets/org/fable"],
        2,
        "this is no model",
    );
    run(&["inspect", "org/fable@../x"], 2, "no revision");
    run(&["inspect", "./org/fable"], 5, "does not exist");
    run(
        &["inspect", "./org/fable", "--revision", "main"],
        2,
        "is a path",
    );
    run(&["inspect", "org/fable/config.json"], 5, "does not exist");
    assert_eq!(net.hub.requests(), []);
    run(
        &["inspect", "org/other"],
        7,
        "`org/other` is no path here, and on http://127.0.0.1",
    );
    run(&["inspect", "org/fable@v9"], 7, "has no revision `v9`");
    fs_err::create_dir(net.place.path("org")).unwrap();
    std::os::unix::fs::symlink(model(), net.place.path("org/fable")).unwrap();
    net.hub.requests();
    assert_code(&net.run(&["inspect", "org/fable"]), 0);
    assert_eq!(net.hub.requests(), [], "the folder wins");
    assert_code(&net.run(&["inspect", "hf://org/fable"]), 0);
    assert!(!net.hub.requests().is_empty());
}

#[test]
fn the_token_goes_to_the_endpoint_only_and_is_never_told() {
    let mut repository = Repository::of(NAME, &model()).unwrap();
    repository.token = Some(TOKEN.to_owned());
    let net = Net::with(repository);
    let output = net.fetch(NAME, &[]);
    assert_code(&output, 7);
    assert!(stderr(&output).contains("is gated") && stderr(&output).contains("HF_TOKEN"));
    let wrong = net.fetch(NAME, &[("HF_TOKEN", "hf_wrong")]);
    assert_code(&wrong, 7);
    assert!(stderr(&wrong).contains("the account that the token belongs to"));
    net.hub.requests();
    let mut command = net.command(&["generate", NAME, "-p", "the", "-n", "1", "-vv"]);
    let output = command
        .env("HF_TOKEN", TOKEN)
        .env("NEUROCONV_LOG", "trace")
        .output()
        .unwrap();
    assert_code(&output, 0);
    assert!(!format!("{}{}", stdout(&output), stderr(&output)).contains(TOKEN));
    let requests = net.hub.requests();
    let (files, api): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.at_files);
    assert!(!files.is_empty() && files.iter().all(|request| request.authorization.is_none()));
    let expected = Some(format!("Bearer {TOKEN}"));
    assert!(api.iter().all(|request| request.authorization == expected));
    let none = net.fetch(
        NAME,
        &[("HF_TOKEN", TOKEN), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")],
    );
    assert_code(&none, 7);
}
