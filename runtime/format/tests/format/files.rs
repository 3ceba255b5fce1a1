//! What is opened at all: regular files inside their folder.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use neuroconv_format::{CheckpointFiles, Error, SafetensorsFile};
use rustix::fs::{CWD, Mode, mkfifoat};

use crate::build::Dir;
use crate::checkpoint::write_single;

#[test]
fn only_regular_files_are_opened() {
    let dir = Dir::new();
    mkfifoat(CWD, dir.path("pipe"), Mode::RUSR | Mode::WUSR).unwrap();
    let _socket = UnixListener::bind(dir.path("socket")).unwrap();
    fs_err::create_dir(dir.path("folder")).unwrap();
    symlink("/dev/zero", dir.path("device")).unwrap();
    for name in ["pipe", "socket", "folder", "device"] {
        let error = SafetensorsFile::open(dir.path(name)).unwrap_err();
        assert!(
            matches!(&error, Error::NotAFile { path } if *path == dir.path(name)),
            "{error:?}"
        );
    }
    let error = SafetensorsFile::open(dir.path("nothing")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        format!("cannot read `{}`", dir.path("nothing").display())
    );
}

#[test]
fn a_folder_must_be_a_folder() {
    let dir = Dir::new();
    let path = dir.write("file", "");
    assert!(matches!(
        CheckpointFiles::open(&path),
        Err(Error::NotAFolder { .. })
    ));
    assert!(matches!(
        CheckpointFiles::open(dir.path("no")),
        Err(Error::Io { .. })
    ));
}

#[test]
fn links_stay_inside_the_folder() {
    let (dir, outside) = (Dir::new(), Dir::new());
    write_single(&dir, "m");
    symlink("tokenizer.json", dir.path("m/tokenizer_copy.json")).unwrap();
    assert_eq!(
        CheckpointFiles::open(dir.path("m"))
            .unwrap()
            .side_files()
            .unwrap()
            .len(),
        2
    );
    fs_err::rename(
        dir.path("m/model.safetensors"),
        outside.path("w.safetensors"),
    )
    .unwrap();
    symlink(
        outside.path("w.safetensors"),
        dir.path("m/model.safetensors"),
    )
    .unwrap();
    let error = CheckpointFiles::open(dir.path("m")).unwrap_err();
    let Error::Outside { path, target } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(*path, dir.path("m/model.safetensors"));
    assert!(target.ends_with("w.safetensors"));
    assert!(error.hint().is_some());
}

/// Moves the files of `model` into `blobs` and leaves links, as a hub cache does.
fn link_into(model: &Path, blobs: &Path) {
    fs_err::create_dir_all(blobs).unwrap();
    for (i, entry) in fs_err::read_dir(model).unwrap().enumerate() {
        let path = entry.unwrap().path();
        let blob = blobs.join(format!("{i:064x}"));
        fs_err::rename(&path, &blob).unwrap();
        symlink(&blob, &path).unwrap();
    }
}

#[test]
fn links_of_a_hub_cache_lead_into_its_own_blobs() {
    let dir = Dir::new();
    let snapshot = "hub/models--org--name/snapshots/0123abcd";
    write_single(&dir, snapshot);
    link_into(
        &dir.path(snapshot),
        &dir.path("hub/models--org--name/blobs"),
    );
    let files = CheckpointFiles::open(dir.path(snapshot)).unwrap();
    assert_eq!(
        files.weight_files(),
        [dir.path(snapshot).join("model.safetensors")]
    );

    let other = "hub/models--org--other/snapshots/0123abcd";
    write_single(&dir, other);
    link_into(&dir.path(other), &dir.path("hub/models--org--name/blobs"));
    assert!(matches!(
        CheckpointFiles::open(dir.path(other)),
        Err(Error::Outside { .. })
    ));
}

#[test]
fn blobs_of_a_hub_cache_may_be_links_to_those_that_all_share() {
    let dir = Dir::new();
    let snapshot = "hub/models--org--name/snapshots/0123abcd";
    write_single(&dir, snapshot);
    let blobs = dir.path("hub/models--org--name/blobs");
    link_into(&dir.path(snapshot), &blobs);
    for (shared, allowed) in [("hub/blobs/0a", true), ("elsewhere/blobs/0a", false)] {
        let shared = dir.path(shared);
        fs_err::create_dir_all(&shared).unwrap();
        for entry in fs_err::read_dir(&blobs).unwrap() {
            let blob = entry.unwrap().path();
            let target = shared.join(blob.file_name().unwrap());
            fs_err::copy(&blob, &target).unwrap();
            fs_err::remove_file(&blob).unwrap();
            symlink(&target, &blob).unwrap();
        }
        let opened = CheckpointFiles::open(dir.path(snapshot));
        assert_eq!(opened.is_ok(), allowed, "{}", shared.display());
    }
}

#[test]
fn text_files_are_capped_before_they_are_read() {
    let dir = Dir::new();
    write_single(&dir, "m");
    let config = fs_err::OpenOptions::new()
        .write(true)
        .open(dir.path("m/config.json"))
        .unwrap();
    config.set_len(1 << 36).unwrap();
    let error = CheckpointFiles::open(dir.path("m")).unwrap_err();
    let Error::TooLarge { limit, found, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!((limit, found), (1 << 20, 1 << 36));
}

#[test]
fn a_tensor_larger_than_memory_is_an_error() {
    let dir = Dir::new();
    let size = 1_u64 << 36;
    let header = crate::build::entry("t", "BF16", &[size / 2], [0, size]);
    let bytes = crate::build::container(&crate::build::header(&[header]), 0);
    let path = dir.write("x.safetensors", &bytes);
    let file = fs_err::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(bytes.len() as u64 + size).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    limit_address_space(1 << 35);
    let error = file.read(&file.tensors()[0]).unwrap_err();
    assert!(
        matches!(error, Error::OutOfMemory { bytes, .. } if bytes == size),
        "{error:?}"
    );
}

/// No allocation of this process may exceed `bytes` from now on.
fn limit_address_space(bytes: u64) {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(
        Resource::As,
        Rlimit {
            current: Some(bytes),
            maximum: Some(bytes),
        },
    )
    .unwrap();
}
