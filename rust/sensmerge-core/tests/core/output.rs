//! The output folder is absent, marked as unfinished, or complete, and never an input.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::files::{f32s, values, write_model};
use sensmerge_core::checkpoint::Checkpoint;
use sensmerge_core::checkpoint::layout::{TensorSpec, index_json, layout};
use sensmerge_core::checkpoint::output::{OUTPUT_FILE, OutputFolder, Writing, check};
use sensmerge_core::dtype::Dtype;
use sensmerge_core::error::{Hint, Kind};
use serde_json::{Value, json};
use tempfile::tempdir;

const MARKER: &str = ".sensmerge-unfinished";

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The files that a folder's list names, except the list itself.
fn listed(folder: &Path) -> BTreeSet<String> {
    let text = fs::read(folder.join(OUTPUT_FILE)).unwrap();
    let listing: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(listing["sensmerge"], env!("CARGO_PKG_VERSION"));
    let files: Vec<String> = serde_json::from_value(listing["files"].clone()).unwrap();
    assert!(files.iter().any(|name| name == OUTPUT_FILE));
    files.into_iter().filter(|name| name != OUTPUT_FILE).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
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
        folder.finish().unwrap();
        assert_eq!(listed(&path).len(), files);
        assert_eq!(names(&path).len(), files + 1);
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
    folder.finish().unwrap();
    assert_eq!(names(&path), set(["model.safetensors", OUTPUT_FILE]));
}

#[test]
fn an_output_is_replaced_only_when_asked_and_only_at_the_end() {
    let root = tempdir().unwrap();
    let path = root.path().join("out");
    let folder = OutputFolder::create(&path, false, &[]).unwrap();
    write(&folder, 1000);
    folder.write("chat_template.jinja", b"old").unwrap();
    folder.finish().unwrap();
    fs::write(path.join("notes.txt"), b"keep me").unwrap();
    fs::write(path.join("adapter_model.safetensors"), b"keep me too").unwrap();
    let before = names(&path);
    let refusal = OutputFolder::create(&path, false, &[]).unwrap_err();
    assert!(refusal.to_string().contains("not empty"), "{refusal}");
    assert_eq!(refusal.hint(), Some(Hint::Overwrite));
    assert!(!refusal.to_string().contains("--"), "{refusal}");

    let folder = OutputFolder::create(&path, true, &[]).unwrap();
    write(&folder, 8);
    let older = Checkpoint::open(&path.join("model.safetensors")).unwrap();
    assert_eq!(values(&older, "a"), [1.0, 1.0]);
    assert!(Checkpoint::open(&path).unwrap_err().to_string().contains("unfinished"));
    drop(folder);
    assert_eq!(names(&path), before);

    let folder = OutputFolder::create(&path, true, &[]).unwrap();
    write(&folder, 8);
    folder.finish().unwrap();
    let sharded = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ];
    assert_eq!(listed(&path), set(sharded));
    let strangers = set(["notes.txt", "adapter_model.safetensors", OUTPUT_FILE]);
    assert_eq!(names(&path), &set(sharded) | &strangers);
    assert_eq!(values(&Checkpoint::open(&path).unwrap(), "b"), [2.0, 2.0]);

    let folder = OutputFolder::create(&path, true, &[]).unwrap();
    write(&folder, 1000);
    folder.finish().unwrap();
    assert_eq!(listed(&path), set(["model.safetensors"]));
    assert_eq!(names(&path), &set(["model.safetensors"]) | &strangers);
}

#[test]
fn weights_that_no_output_listed_are_never_replaced() {
    let others = ["model.safetensors", "model-00001-of-00002.safetensors"];
    for stranger in others.into_iter().chain(["model.safetensors.index.json"]) {
        let root = tempdir().unwrap();
        let path = root.path().join("out");
        fs::create_dir(&path).unwrap();
        fs::write(path.join(stranger), b"a stranger's").unwrap();
        let refusal = OutputFolder::create(&path, true, &[]).unwrap_err();
        let said = refusal.to_string();
        assert!(said.contains(stranger) && said.contains("move or delete"), "{said}");
        assert_eq!(refusal.hint(), None);
        assert_eq!(names(&path), set([stranger]));
    }
}

#[test]
fn a_list_that_lies_removes_nothing() {
    let root = tempdir().unwrap();
    let (path, outside) = (root.path().join("out"), root.path().join("outside"));
    fs::create_dir(&path).unwrap();
    fs::write(&outside, b"").unwrap();
    for text in [
        json!({"sensmerge": "0", "files": ["../outside"]}).to_string(),
        json!({"sensmerge": "0", "files": [outside.to_str()]}).to_string(),
        json!({"files": []}).to_string(),
        "[".to_owned(),
    ] {
        fs::write(path.join(OUTPUT_FILE), &text).unwrap();
        let said = OutputFolder::create(&path, true, &[]).unwrap_err().to_string();
        assert!(said.contains("not a list of an output's files"), "{said}");
        assert_eq!(names(&path), set([OUTPUT_FILE]));
        assert!(outside.exists());
    }
}

/// Put a folder that is not empty in the place of the file `name`, so that renaming to it fails.
fn obstruct(folder: &Path, name: &str) {
    let _ = fs::remove_file(folder.join(name));
    fs::create_dir(folder.join(name)).unwrap();
    fs::write(folder.join(name).join("in the way"), b"").unwrap();
}

#[test]
fn a_failure_at_the_end_takes_back_all_or_leaves_the_mark() {
    for last in ["a.txt", "model.safetensors"] {
        let root = tempdir().unwrap();
        let path = root.path().join("new/out");
        let folder = OutputFolder::create(&path, false, &[]).unwrap();
        write(&folder, 1000);
        folder.write("a.txt", b"").unwrap();
        obstruct(&path, last);
        folder.finish().unwrap_err();
        assert_eq!(names(&path), set([last]), "nothing of ours");
    }
    for last in ["a.txt", "model-00002-of-00002.safetensors", "model.safetensors.index.json"] {
        let root = tempdir().unwrap();
        let path = root.path().join("out");
        let folder = OutputFolder::create(&path, false, &[]).unwrap();
        write(&folder, 1000);
        folder.finish().unwrap();
        let folder = OutputFolder::create(&path, true, &[]).unwrap();
        write(&folder, 8);
        folder.write("a.txt", b"").unwrap();
        obstruct(&path, last);
        folder.finish().unwrap_err();
        assert!(names(&path).contains(MARKER), "{last}");
        assert!(!names(&path).iter().any(|name| name.ends_with(".partial")));

        // All files left are listed, and a merge that fails early does not remove the marker.
        fs::remove_dir_all(path.join(last)).unwrap();
        let said = OutputFolder::create(&path, false, &[]).unwrap_err().to_string();
        assert!(said.contains("unfinished"), "{said}");
        drop(OutputFolder::create(&path, true, &[]).unwrap());
        assert!(names(&path).contains(MARKER), "{last}");
        let folder = OutputFolder::create(&path, true, &[]).unwrap();
        write(&folder, 1000);
        folder.finish().unwrap();
        assert_eq!(names(&path), set(["model.safetensors", OUTPUT_FILE]));
    }
}

/// Flushing a device fails, so that a link to one in place of a file stands for a broken disk.
#[cfg(target_os = "linux")]
#[test]
fn a_flush_that_fails_leaves_nothing() {
    for overwrite in [false, true] {
        let root = tempdir().unwrap();
        let path = root.path().join("out");
        if overwrite {
            let folder = OutputFolder::create(&path, false, &[]).unwrap();
            write(&folder, 1000);
            folder.finish().unwrap();
        }
        let how = Writing { overwrite, sync: true, ..Writing::default() };
        let folder = OutputFolder::create_for(&path, &[], how).unwrap();
        write(&folder, 8);
        let partial = path.join(".sensmerge-model-00002-of-00002.safetensors.partial");
        fs::remove_file(&partial).unwrap();
        std::os::unix::fs::symlink("/dev/null", &partial).unwrap();
        let error = folder.finish().unwrap_err();
        assert_eq!(error.kind(), Kind::Io);
        assert!(error.to_string().contains("model-00002-of-00002"), "{error}");
        if overwrite {
            assert_eq!(names(&path), set(["model.safetensors", OUTPUT_FILE]));
        } else {
            assert!(names(root.path()).is_empty());
        }
    }
}

#[test]
fn an_input_is_never_written_to() {
    let root = tempdir().unwrap();
    let input = root.path().join("models/input");
    write_model(&input, &[f32s("a", &[1], &[1.0])]);
    let file = input.join("model.safetensors");
    let refused = |output: &Path, input: &Path, how: &str| {
        let said = check(output, true, &[input]).unwrap_err().to_string();
        assert!(said.contains("never written to"), "{said}");
        assert!(said.contains(how), "{said}");
    };
    refused(&input, &input, "is the input");
    refused(&root.path().join("./x/../models/input"), &input, "is the input");
    refused(&input.join("below"), &input, "lies in");
    refused(&input, &file, "contains");
    refused(&root.path().join("models"), &input, "contains");
    refused(root.path(), &file, "contains");
    assert!(check(&root.path().join("output"), false, &[&input]).is_ok());
    assert!(check(&root.path().join("models/inp"), false, &[&input]).is_ok());
    #[cfg(unix)]
    {
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&input, &link).unwrap();
        refused(&link, &input, "is the input");
        refused(&input, &link, "is the input");
        refused(&root.path().join("models"), &link, "contains");
        let lender = root.path().join("lender");
        fs::create_dir(&lender).unwrap();
        std::os::unix::fs::symlink(&file, lender.join("model.safetensors")).unwrap();
        refused(&input, &lender, "contains");
        refused(&root.path().join("models"), &lender, "contains");
    }
}

#[cfg(unix)]
#[test]
fn what_lies_in_the_markers_place_is_not_followed() {
    let root = tempdir().unwrap();
    let (out, marker) = (root.path().join("out"), root.path().join("out/.sensmerge-unfinished"));
    fs::create_dir(&out).unwrap();
    for target in ["../made", "../there"] {
        fs::write(root.path().join("there"), "mine").unwrap();
        std::os::unix::fs::symlink(target, &marker).unwrap();
        let error = OutputFolder::create(&out, true, &[]).unwrap_err();
        assert!(error.to_string().contains("is not a regular file"), "{error}");
        assert_eq!(names(root.path()), set(["out", "there"]));
        fs::remove_file(&marker).unwrap();
    }
    drop(OutputFolder::create(&out, true, &[]).unwrap());
    assert!(names(&out).is_empty());
}

#[cfg(unix)]
#[test]
fn what_cannot_be_looked_at_is_not_taken_for_absent() {
    let root = tempdir().unwrap();
    let circle = root.path().join("circle");
    std::os::unix::fs::symlink(&circle, &circle).unwrap();
    // No name is so long, so that the caller's is wrong.
    let long = root.path().join("x".repeat(300));
    for (place, kind) in [(circle.join("out"), Kind::Io), (long, Kind::Input)] {
        let error = OutputFolder::create(&place, false, &[]).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let error = check(&root.path().join("out"), false, &[&place]).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
    assert_eq!(names(root.path()), set(["circle"]));
}

#[test]
fn two_merges_do_not_share_a_folder() {
    let root = tempdir().unwrap();
    let path = root.path().join("out");
    let first = OutputFolder::create(&path, false, &[]).unwrap();
    let said = OutputFolder::create(&path, true, &[]).unwrap_err().to_string();
    assert!(said.contains("another merge"), "{said}");
    write(&first, 1000);
    first.finish().unwrap();
    assert!(Checkpoint::open(&path).is_ok());
}

#[test]
fn odd_places_are_refused() {
    let root = tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, b"").unwrap();
    assert!(check(&file, true, &[]).unwrap_err().to_string().contains("not a folder"));
    let folder = OutputFolder::create(&root.path().join("out"), false, &[]).unwrap();
    let said = folder.copy("a", root.path()).unwrap_err().to_string();
    assert!(said.contains("not a regular file"), "{said}");
    for name in ["../escape", "a/b", "..", ""] {
        assert!(folder.write(name, b"").is_err(), "{name}");
    }
}
