//! The output folder is absent, marked as unfinished, or complete, and never an input.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::files::{f32s, values, write_model};
use sensmerge_core::checkpoint::Checkpoint;
use sensmerge_core::checkpoint::layout::{TensorSpec, index_json, layout};
use sensmerge_core::checkpoint::output::{OutputFolder, check};
use sensmerge_core::dtype::Dtype;
use tempfile::tempdir;

const MARKER: &str = ".sensmerge-unfinished";

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn spec(name: &str, elements: usize) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: Dtype::F32, shape: vec![elements] }
}

/// Write a model of two tensors of two entries each, in files of at most `max_shard_bytes`.
fn write(folder: &OutputFolder, max_shard_bytes: u64) {
    let shards = layout(vec![spec("a", 2), spec("b", 2)], max_shard_bytes);
    for shard in &shards {
        let writer = folder.shard(shard).unwrap();
        for (tensor, offset) in &shard.tensors {
            let value = if tensor.name == "a" { 1.0_f32 } else { 2.0 };
            writer.write_at(*offset, &[value.to_le_bytes(); 2].concat()).unwrap();
        }
    }
    if shards.len() > 1 {
        folder.write("model.safetensors.index.json", index_json(&shards).as_bytes()).unwrap();
    }
}

#[test]
fn what_is_written_is_read_back() {
    for (max_shard_bytes, files) in [(1000, 1), (8, 3), (1, 3)] {
        let root = tempdir().unwrap();
        let path = root.path().join("new/deep/out");
        let folder = OutputFolder::create(&path, false, &[]).unwrap();
        write(&folder, max_shard_bytes);
        assert!(names(&path).contains(MARKER));
        assert!(names(&path).iter().all(|name| name.starts_with(".sensmerge-")));
        folder.finish(true).unwrap();
        assert_eq!(names(&path).len(), files);
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(values(&checkpoint, "a"), [1.0, 1.0]);
        assert_eq!(values(&checkpoint, "b"), [2.0, 2.0]);
    }
}

#[test]
fn dropped_before_the_end_it_leaves_nothing() {
    let root = tempdir().unwrap();
    let folder = OutputFolder::create(&root.path().join("a/b"), false, &[]).unwrap();
    write(&folder, 8);
    drop(folder);
    assert!(names(root.path()).is_empty());

    let existing = root.path().join("empty");
    fs::create_dir(&existing).unwrap();
    let folder = OutputFolder::create(&existing, false, &[]).unwrap();
    write(&folder, 1000);
    drop(folder);
    assert!(names(&existing).is_empty());
}

#[test]
fn what_a_killed_merge_left_is_taken_over() {
    let root = tempdir().unwrap();
    let path = root.path().join("out");
    fs::create_dir(&path).unwrap();
    fs::write(path.join(MARKER), b"").unwrap();
    fs::write(path.join(".sensmerge-model.safetensors.partial"), b"half").unwrap();
    let folder = OutputFolder::create(&path, false, &[]).unwrap();
    write(&folder, 1000);
    folder.finish(false).unwrap();
    assert_eq!(names(&path), BTreeSet::from(["model.safetensors".to_owned()]));
}

#[test]
fn a_model_is_replaced_only_when_asked_and_only_at_the_end() {
    let root = tempdir().unwrap();
    let path = root.path().join("out");
    write_model(&path, &[f32s("old", &[1], &[9.0])]);
    fs::write(path.join("notes.txt"), b"keep me").unwrap();
    let said = OutputFolder::create(&path, false, &[]).unwrap_err().to_string();
    assert!(said.contains("not empty") && said.contains("--force"), "{said}");

    let folder = OutputFolder::create(&path, true, &[]).unwrap();
    write(&folder, 8);
    assert_eq!(values(&Checkpoint::open(&path).unwrap(), "old"), [9.0]);
    drop(folder);
    assert_eq!(values(&Checkpoint::open(&path).unwrap(), "old"), [9.0]);
    assert_eq!(names(&path).len(), 2);

    let folder = OutputFolder::create(&path, true, &[]).unwrap();
    write(&folder, 8);
    folder.finish(true).unwrap();
    let expected = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "notes.txt",
    ];
    assert_eq!(names(&path), expected.map(str::to_owned).into());
    assert_eq!(values(&Checkpoint::open(&path).unwrap(), "b"), [2.0, 2.0]);

    let folder = OutputFolder::create(&path, true, &[]).unwrap();
    write(&folder, 1000);
    folder.finish(true).unwrap();
    assert_eq!(names(&path).len(), 2);
}

#[test]
fn an_input_is_never_written_to() {
    let root = tempdir().unwrap();
    let input = root.path().join("input");
    write_model(&input, &[f32s("a", &[1], &[1.0])]);
    let file = input.join("model.safetensors");
    let refused = |output: &Path, input: &Path| {
        let said = check(output, true, &[input]).unwrap_err().to_string();
        assert!(said.contains("never written to"), "{said}");
    };
    refused(&input, &input);
    refused(&root.path().join("./x/../input"), &input);
    refused(&input.join("below"), &input);
    refused(&input, &file);
    assert!(check(&root.path().join("output"), false, &[&input]).is_ok());
    #[cfg(unix)]
    {
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&input, &link).unwrap();
        refused(&link, &input);
        refused(&input, &link);
        let lender = root.path().join("lender");
        fs::create_dir(&lender).unwrap();
        std::os::unix::fs::symlink(&file, lender.join("model.safetensors")).unwrap();
        refused(&input, &lender);
    }
}

#[test]
fn two_merges_do_not_share_a_folder() {
    let root = tempdir().unwrap();
    let path = root.path().join("out");
    let first = OutputFolder::create(&path, false, &[]).unwrap();
    let said = OutputFolder::create(&path, true, &[]).unwrap_err().to_string();
    assert!(said.contains("another merge"), "{said}");
    write(&first, 1000);
    first.finish(false).unwrap();
    assert!(Checkpoint::open(&path).is_ok());
}

#[test]
fn odd_places_are_refused() {
    let root = tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, b"").unwrap();
    assert!(check(&file, true, &[]).unwrap_err().to_string().contains("not a folder"));
    let folder = OutputFolder::create(&root.path().join("out"), false, &[]).unwrap();
    for name in ["../escape", "a/b", "..", ""] {
        assert!(folder.write(name, b"").is_err(), "{name}");
    }
}
