//! Models of a hub, fetched by the real program from a hub on this machine.

mod faults;
mod fetching;
mod naming;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use neuroconv_fixtures::hub::{Hub, Repository, Request};
use serde_json::Value;

use crate::place::{Place, model};

/// What the hub calls the fixture model.
const NAME: &str = "org/fable";
/// A token that must be seen nowhere.
const TOKEN: &str = "hf_never_to_be_seen";
/// The only large file of the fixture model, as the server of large files has it.
const WEIGHTS: &str = "fable/model.safetensors";

/// A hub with one model, and an empty cache.
struct Net {
    place: Place,
    hub: Hub,
    commit: String,
    size: u64,
}

impl Net {
    fn new() -> Self {
        Net::of(&model())
    }

    fn of(folder: &Path) -> Self {
        Net::with(Repository::of(NAME, folder).unwrap())
    }

    fn with(repository: Repository) -> Self {
        Net {
            place: Place::new(),
            commit: repository.commit.clone(),
            size: repository.size("model.safetensors").unwrap_or(0),
            hub: Hub::start(vec![repository]).unwrap(),
        }
    }

    /// The program with an environment of its own.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_neuroconv"));
        for (name, _) in std::env::vars() {
            let lower = name.to_lowercase();
            if lower.starts_with("hf_") || lower.contains("proxy") || lower.contains("offline") {
                command.env_remove(name);
            }
        }
        command
            .args(args)
            .current_dir(self.place.path(""))
            .env("HF_ENDPOINT", self.hub.endpoint())
            .env("HF_HOME", self.place.path("home"))
            .env("HF_HUB_DOWNLOAD_TIMEOUT", "1")
            .env("HF_HUB_ETAG_TIMEOUT", "1");
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs the shortest command that needs all of the model; `env` on top.
    fn fetch(&self, name: &str, env: &[(&str, &str)]) -> Output {
        let mut command = self.command(&["generate", name, "-p", "the", "-n", "1"]);
        command.envs(env.iter().copied()).output().unwrap()
    }

    fn cache(&self) -> PathBuf {
        self.place.path("home/hub/models--org--fable")
    }

    fn snapshot(&self) -> PathBuf {
        self.cache().join("snapshots").join(&self.commit)
    }

    /// Everything in the cache is what the hub has, and nothing is half done.
    fn assert_complete(&self) {
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            let (found, expected) = (self.snapshot().join(name), model().join(name));
            assert!(
                fs_err::read(found).unwrap() == fs_err::read(expected).unwrap(),
                "{name}"
            );
        }
        for entry in fs_err::read_dir(self.cache().join("blobs")).unwrap() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            assert!(!name.contains('.'), "{name}");
        }
    }

    fn incomplete(&self) -> Option<(PathBuf, u64)> {
        let entries = fs_err::read_dir(self.cache().join("blobs")).ok()?;
        let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let path = paths.find(|path| path.to_string_lossy().ends_with(".incomplete"))?;
        let size = fs_err::metadata(&path).ok()?.len();
        Some((path, size))
    }
}

/// The requests for the weights where they are, or for what is missing of them; not for their header.
fn of_weights(requests: &[Request]) -> Vec<&Request> {
    let weights = |request: &&Request| {
        request.at_files && request.path.contains("model.safetensors") && !request.is_sample()
    };
    requests.iter().filter(weights).collect()
}

/// Bytes of weights that were sent, their headers included.
fn sent_of_weights(requests: &[Request]) -> u64 {
    let weights = requests.iter().filter(|request| request.at_files);
    weights.map(|request| request.sent).sum()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}
