//! A folder for one test, the program run in it, and what came out.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Enough text for a verdict, little enough for a test.
pub(crate) const MEASURE: [&str; 4] = ["--ctx", "128", "--max-eval-tokens", "1280"];

/// A folder of its own for one test, and the fixture model.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Place {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_neuroconv"))
            .args(args)
            .current_dir(self.dir.path())
            .output()
            .unwrap()
    }

    /// Runs a conversion of `model` that is measured on the model's own language.
    pub(crate) fn convert(&self, what: &str, model: &Path, rest: &[&str]) -> Output {
        let text = neuroconv_fixtures::tiny_text();
        let mut args = vec![
            what,
            model.to_str().unwrap(),
            "--text",
            text.to_str().unwrap(),
        ];
        args.extend(MEASURE);
        args.extend(rest);
        self.run(&args)
    }

    /// Names of everything in the folder, hidden ones too.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs_err::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

pub(crate) fn model() -> PathBuf {
    neuroconv_fixtures::tiny_model()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub(crate) fn assert_code(output: &Output, expected: i32) {
    assert_eq!(
        code(output),
        expected,
        "{}\n{}",
        stdout(output),
        stderr(output)
    );
}
