//! Several processes merge one model, each some of its weight files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sensmerge_core::engine::{Inputs, Monitor, Options, Sidecar, commit, execute, execute_shards};
use sensmerge_core::manifest::{Builder, Manifest, View};
use sensmerge_core::{Error, Result};
use tempfile::tempdir;

use crate::chunks::every_method;
use crate::files::{f32s, open, plan, write_model};

/// Every tensor gets a file of its own.
fn options() -> Options {
    Options { threads: Some(2), max_shard_bytes: 1, sync: false, ..Options::default() }
}

fn part(manifest: &Manifest, out: &Path, shards: &[usize]) -> Result<Vec<String>> {
    let inputs = Inputs::open(manifest)?;
    let which: BTreeSet<usize> = shards.iter().copied().collect();
    let monitor = Monitor::new();
    let done =
        execute_shards(manifest, &inputs, out, &which, Duration::ZERO, &options(), &monitor)?;
    assert_eq!(done.merged.len() + done.whole.len(), shards.len());
    Ok(done.merged)
}

fn put_in_place(manifest: &Manifest, out: &Path) -> Result<()> {
    let sidecars = [Sidecar::Text { name: "config.json".into(), content: "{}".into() }];
    let inputs = Inputs::open(manifest)?;
    commit(manifest, &inputs, out, &sidecars, &[], &options(), &Monitor::new()).map(drop)
}

/// Content by name, but for the list of the output.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<(String, Vec<u8>)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with("sensmerge_output.json"))
        .map(|path| {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())
        })
        .collect();
    found.sort();
    found
}

fn sealed(manifest: &Manifest) -> Manifest {
    let paths: Vec<PathBuf> = manifest.models.iter().map(|model| model.path.clone()).collect();
    let checkpoints = open(&paths).unwrap();
    manifest.clone().with_fingerprints(checkpoints.iter().map(AsRef::as_ref))
}

#[test]
fn parts_of_every_method_make_the_same_model() {
    let folder = tempdir().unwrap();
    every_method(folder.path(), |name, manifest| {
        let manifest = sealed(manifest);
        let (whole, out) = (folder.path().join("whole"), folder.path().join("parts"));
        let inputs = Inputs::open(&manifest).unwrap();
        let sidecars = [Sidecar::Text { name: "config.json".into(), content: "{}".into() }];
        execute(&manifest, &inputs, &whole, &sidecars, &[], &options(), &Monitor::new()).unwrap();
        let mut left = vec![2, 0, 1];
        for _ in 0..10 {
            left.retain(|&shard| match part(&manifest, &out, &[shard]) {
                Ok(merged) => {
                    assert_eq!(merged.len(), 1, "{name}");
                    false
                }
                Err(Error::Waiting { .. }) => true,
                Err(error) => panic!("{name}: {error}"),
            });
        }
        assert!(left.is_empty(), "{name}: {left:?} wait for ever");
        put_in_place(&manifest, &out).unwrap();
        assert!(files(&whole) == files(&out), "{name}: other bytes");
        for path in [whole, out] {
            fs::remove_dir_all(path).unwrap();
        }
    });
}

/// A merge whose signs are elected by the whole model, of two tensors.
fn of_the_whole_model(folder: &Path) -> Manifest {
    for (seed, name) in (1_u8..).zip(["base", "one", "two"]) {
        let entry = |place: u8| f32::from(place.wrapping_mul(seed).wrapping_add(seed * 37) % 50);
        let values: Vec<f32> = (0..100).map(entry).collect();
        write_model(
            &folder.join(name),
            &[f32s("layers.0.w", &[100], &values), f32s("layers.1.w", &[50], &values[..50])],
        );
    }
    let checkpoints = open(&["base", "one", "two"].map(|name| folder.join(name))).unwrap();
    let builder = Builder::new("ties")
        .semantics(sensmerge_core::method::Semantics::Original)
        .numbers("density", &[0.4, 0.4]);
    let (manifest, _) =
        plan(builder, checkpoints.first(), &checkpoints[1..], |_, view: View| view).unwrap();
    sealed(&manifest)
}

#[test]
fn a_part_waits_for_the_others_and_may_be_repeated() {
    let folder = tempdir().unwrap();
    let manifest = of_the_whole_model(folder.path());
    let out = folder.path().join("out");
    let waits = |outcome: Result<Vec<String>>| {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::Waiting { .. }), "{error}");
        assert!(error.to_string().contains("model-00002-of-00002.safetensors"), "{error}");
    };
    waits(part(&manifest, &out, &[0]));
    waits(part(&manifest, &out, &[0]));
    let early = put_in_place(&manifest, &out).unwrap_err();
    assert!(matches!(&early, Error::Waiting { .. }), "{early}");
    // A process that has all of them needs nobody.
    assert_eq!(part(&manifest, &out, &[0, 1]).unwrap().len(), 2);
    assert!(part(&manifest, &out, &[1]).unwrap().is_empty());
    put_in_place(&manifest, &out).unwrap();
    let before = files(&out);
    assert!(before.iter().all(|(name, _)| !name.starts_with(".sensmerge-")), "{before:?}");
    // Whoever comes late finds all done.
    assert!(part(&manifest, &out, &[0]).unwrap().is_empty());
    put_in_place(&manifest, &out).unwrap();
    assert!(files(&out) == before);
}

#[test]
fn what_is_not_whole_does_not_count() {
    let folder = tempdir().unwrap();
    let manifest = of_the_whole_model(folder.path());
    let out = folder.path().join("out");
    part(&manifest, &out, &[0, 1]).unwrap();
    let shard = out.join(".sensmerge-model-00001-of-00002.safetensors.partial");
    let bytes = fs::read(&shard).unwrap();
    for wrong in [&bytes[..bytes.len() - 1], &vec![1; bytes.len()]] {
        fs::write(&shard, wrong).unwrap();
        let error = put_in_place(&manifest, &out).unwrap_err();
        let said = "not merged yet: model-00001-of-00002.safetensors";
        assert!(error.to_string().contains(said), "{error}");
    }
    // The same bytes at another time are as good.
    fs::write(&shard, &bytes).unwrap();
    assert!(part(&manifest, &out, &[0]).unwrap().is_empty());
    fs::remove_file(&shard).unwrap();
    assert_eq!(part(&manifest, &out, &[0]).unwrap().len(), 1);
    put_in_place(&manifest, &out).unwrap();
}

#[test]
fn parts_of_different_merges_do_not_mix() {
    let folder = tempdir().unwrap();
    let manifest = of_the_whole_model(folder.path());
    let out = folder.path().join("out");
    part(&manifest, &out, &[0, 1]).unwrap();
    let mut other = manifest.clone();
    other.seed += 1;
    for outcome in [part(&other, &out, &[0]).map(drop), put_in_place(&other, &out)] {
        let error = outcome.unwrap_err();
        assert!(error.to_string().contains("unfinished merge of another"), "{error}");
    }
    let inputs = Inputs::open(&other).unwrap();
    let outcome = execute(&other, &inputs, &out, &[], &[], &options(), &Monitor::new());
    assert!(outcome.unwrap_err().to_string().contains("unfinished merge of another"));
    let error = part(&manifest, &out, &[2]).unwrap_err();
    assert!(error.to_string().contains("there is no weight file 3; the output has 2"), "{error}");

    // A process that merges a part keeps others out that would merge all alone, and lets others join.
    let name = "model-00001-of-00002.safetensors";
    fs::remove_file(out.join(format!(".sensmerge-{name}.partial"))).unwrap();
    put_in_place(&manifest, &out).unwrap_err();
    assert_eq!(part(&manifest, &out, &[0]).unwrap(), [name]);
}
