//! Headers, indices and manifests with something wrong in them: read if a naive reader finds them
//! sound, refused otherwise, and never a panic. `PROPTEST_CASES` says how many are tried.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use sensmerge_core::checkpoint::Checkpoint;
use sensmerge_core::engine::{Inputs, Monitor, Options, execute};
use sensmerge_core::error::Kind;
use sensmerge_core::manifest::{Builder, Manifest};
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::files::{f32s, file, open, planned, write_index, write_model, write_sharded};
use crate::mutation::{changes, mutated};

/// Whether a header is sound, for `size` bytes of data: each byte is one tensor's.
fn is_sound(header: &Value, size: u64) -> bool {
    let Some(entries) = header.as_object() else { return false };
    let mut ranges = Vec::new();
    for (name, said) in entries {
        if name == "__metadata__" {
            let texts = said.as_object().is_some_and(|map| map.values().all(Value::is_string));
            if !texts {
                return false;
            }
            continue;
        }
        let Some(range) = range(said) else { return false };
        if name.is_empty() {
            return false;
        }
        ranges.push(range);
    }
    ranges.sort_unstable();
    let mut covered = 0;
    ranges.iter().all(|&(start, end)| start == std::mem::replace(&mut covered, end))
        && covered == size
}

/// The offsets that a tensor's entry gives, if its dtype and shape fit them.
fn range(said: &Value) -> Option<(u64, u64)> {
    let said = said.as_object().filter(|said| said.len() == 3)?;
    let bits = match said.get("dtype")?.as_str()? {
        "F32" => 32_u128,
        "U8" => 8,
        "F4" => 4,
        _ => return None,
    };
    let sizes: Vec<u64> =
        said.get("shape")?.as_array()?.iter().map(Value::as_u64).collect::<Option<_>>()?;
    let offsets: Vec<u64> =
        said.get("data_offsets")?.as_array()?.iter().map(Value::as_u64).collect::<Option<_>>()?;
    let &[start, end] = offsets.as_slice() else { return None };
    // A product that overflows on its way to 0 is refused too.
    let entries = sizes.iter().try_fold(1_u64, |product, size| product.checked_mul(*size))?;
    (u128::from(entries) * bits == u128::from(end.checked_sub(start)?) * 8).then_some((start, end))
}

/// Refused as bad input, by a message that names the folder.
fn is_refused(outcome: sensmerge_core::Result<Checkpoint>, folder: &Path) -> bool {
    let Err(error) = outcome else { return false };
    error.kind() == Kind::Input && error.to_string().contains(folder.to_str().unwrap())
}

proptest! {
    #[test]
    fn headers_are_read_if_they_are_sound(changes in changes()) {
        let header = json!({
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
            "b": {"dtype": "U8", "shape": [4], "data_offsets": [8, 12]},
            "c": {"dtype": "F4", "shape": [2, 4], "data_offsets": [12, 16]},
            "d": {"dtype": "F32", "shape": [], "data_offsets": [16, 20]},
            "e": {"dtype": "F32", "shape": [0, 3], "data_offsets": [20, 20]},
        });
        let header = mutated(header, &changes);
        let folder = tempdir().unwrap();
        let path = folder.path();
        fs::write(path.join("model.safetensors"), file(&header, &[0; 20])).unwrap();
        let opened = Checkpoint::open(path);
        if is_sound(&header, 20) {
            let opened = opened.map_err(|error| TestCaseError::fail(format!("{error}: {header}")))?;
            for tensor in opened.tensors() {
                prop_assert_eq!(opened.bytes(tensor).len(), tensor.nbytes());
                prop_assert_eq!(tensor.elements() * tensor.dtype.bits(), tensor.nbytes() * 8);
            }
        } else {
            prop_assert!(is_refused(opened, path), "{}", header);
        }
    }

    #[test]
    fn indices_are_followed_if_they_are_true(changes in changes()) {
        let files = ["part-0.safetensors", "part-1.safetensors"];
        let index = json!({
            "metadata": {"total_size": 12},
            "weight_map": {"a": files[0], "b": files[1], "c": files[1]},
        });
        let index = mutated(index, &changes);
        let folder = tempdir().unwrap();
        let path = folder.path();
        let one = |name| f32s(name, &[1], &[1.0]);
        write_sharded(path, &[vec![one("a")], vec![one("b"), one("c")]]);
        write_index(path, &index.to_string());
        let held = BTreeMap::from([("a", files[0]), ("b", files[1]), ("c", files[1])]);
        let sound = index["weight_map"].as_object().is_some_and(|map| {
            let named: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
            let said = map.iter().all(|(name, file)| held.get(name.as_str()).copied() == file.as_str());
            let all = held.iter().all(|(name, file)| !named.contains(file) || map.contains_key(*name));
            !map.is_empty() && map.values().all(Value::is_string) && said && all
        });
        let opened = Checkpoint::open(path);
        if sound {
            let opened = opened.map_err(|error| TestCaseError::fail(format!("{error}: {index}")))?;
            prop_assert_eq!(opened.tensors().count(), index["weight_map"].as_object().unwrap().len());
        } else {
            prop_assert!(is_refused(opened, path), "{}", index);
        }
    }

    #[test]
    fn manifests_are_carried_out_or_refused(changes in changes()) {
        let folder = tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, value) in [("base", 1.0), ("one", 2.0), ("two", 4.0)] {
            write_model(&at(name), &[f32s("a", &[2], &[value; 2]), f32s("b", &[1], &[value])]);
        }
        let (base, models) = (open(&[at("base")]).unwrap(), open(&[at("one"), at("two")]).unwrap());
        let builder = Builder::new("task_arithmetic");
        let sound = planned(builder, base.first(), &models, |_, view| view).unwrap();
        let before = fs::read_dir(folder.path()).unwrap().count();
        let text = mutated(serde_json::from_str(&sound.to_json().unwrap()).unwrap(), &changes).to_string();
        let done = Manifest::from_json(&text).and_then(|manifest| {
            let inputs = Inputs::open(&manifest)?;
            let options = Options { threads: Some(1), sync: false, ..Options::default() };
            execute(&manifest, &inputs, &at("out"), &[], &[], &options, &Monitor::new())
        });
        let written = usize::from(done.is_ok());
        prop_assert_eq!(fs::read_dir(folder.path()).unwrap().count(), before + written, "{}", text);
    }
}

#[test]
fn a_header_of_many_tensors_is_refused_before_they_are_kept() {
    let folder = tempdir().unwrap();
    let entry = json!({"dtype": "U8", "shape": [0], "data_offsets": [0, 0]});
    let header: serde_json::Map<String, Value> =
        (0..100_002).map(|place| (place.to_string(), entry.clone())).collect();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, file(&Value::Object(header), &[])).unwrap();
    let said = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(said.contains("more than 100000 tensors"), "{said}");
}

#[cfg(unix)]
#[test]
fn links_stay_in_the_folder_or_in_the_hubs_cache() {
    use std::os::unix::fs::symlink;
    let root = tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    write_model(&at("real"), &[f32s("a", &[1], &[1.0])]);
    let weights = at("real/model.safetensors");
    for folder in ["models--org--name/blobs", "models--org--name/snapshots/main", "local"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    let snapshot = at("models--org--name/snapshots/main");
    fs::copy(&weights, at("models--org--name/blobs/digest")).unwrap();
    symlink("../../blobs/digest", snapshot.join("model.safetensors")).unwrap();
    assert!(Checkpoint::open(&snapshot).is_ok());
    // A link to the weights may be named; a folder that is a link too.
    symlink(&weights, at("link.safetensors")).unwrap();
    symlink(at("real"), at("folder")).unwrap();
    assert!(Checkpoint::open(&at("link.safetensors")).is_ok());
    assert!(Checkpoint::open(&at("folder")).is_ok());
    fs::copy(&weights, at("local/stored.bin")).unwrap();
    symlink("stored.bin", at("local/model.safetensors")).unwrap();
    assert!(Checkpoint::open(&at("local")).is_ok());
    for folder in [snapshot, at("local")] {
        fs::remove_file(folder.join("model.safetensors")).unwrap();
        symlink(&weights, folder.join("model.safetensors")).unwrap();
        let said = Checkpoint::open(&folder).unwrap_err().to_string();
        assert!(said.contains("leads outside the model's folder"), "{said}");
    }
}
