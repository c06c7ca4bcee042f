//! Models with adapters, through the public interface: planned, written as JSON, carried out by another
//! process, and read into memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use sensmerge_core::checkpoint::Checkpoint;
use sensmerge_core::engine::{Inputs, Monitor, Options, execute, read_into};
use sensmerge_core::manifest::{Builder, Change, Manifest, Patch, View};
use tempfile::tempdir;

use crate::files::{f32s, safetensors, values, write_model};

/// A model `w`, `norm` and an adapter for it, of rank 1: `B·A` is [[3, 4], [6, 8]].
fn write(folder: &Path) {
    let tensors = [f32s("w", &[2, 2], &[1.0, 2.0, 3.0, 4.0]), f32s("norm", &[2], &[1.0, 1.0])];
    write_model(&folder.join("base"), &tensors);
    let adapter = [
        f32s("a", &[1, 2], &[3.0, 4.0]),
        f32s("b", &[2, 1], &[1.0, 2.0]),
        f32s("m", &[2], &[10.0, 1.0]),
        f32s("norm", &[2], &[5.0, 6.0]),
        f32s("row", &[1, 2], &[7.0, 8.0]),
    ];
    fs::write(folder.join("adapter_model.safetensors"), safetensors(&adapter)).unwrap();
}

fn low_rank(magnitude: bool) -> Change {
    Change::LowRank {
        a: "a".into(),
        b: "b".into(),
        scale: 0.5,
        transposed: false,
        magnitude: magnitude.then(|| "m".into()),
    }
}

/// The model, and with the adapter's changes.
fn views(folder: &Path, changes: Vec<(&str, Change)>) -> (View, View) {
    let base = Arc::new(Checkpoint::open(&folder.join("base")).unwrap());
    let adapter = folder.join("adapter_model.safetensors");
    let adapter = Arc::new(Checkpoint::open_adapter(&adapter).unwrap());
    let mut changed = View::new(Arc::clone(&base));
    for (name, change) in changes {
        changed = changed.patch(name, Patch::new(Arc::clone(&adapter), change));
    }
    (View::new(base), changed)
}

#[test]
fn a_task_vector_is_the_change() {
    let folder = tempdir().unwrap();
    write(folder.path());
    let whole = Change::Whole { tensor: "norm".into() };
    let (base, changed) = views(folder.path(), vec![("w", low_rank(false)), ("norm", whole)]);
    let builder = Builder::new("task_arithmetic").base(base).model(changed).number("lambda", 2.0);
    let text = builder.numbers("weight", &[1.0]).build().unwrap().to_json().unwrap();
    // Another process has nothing but the text.
    let manifest = Manifest::from_json(&text).unwrap();
    assert_eq!(manifest.models.len(), 2);
    let (inputs, out) = (Inputs::open(&manifest).unwrap(), folder.path().join("out"));
    execute(&manifest, &inputs, &out, &[], &[], &Options::default(), &Monitor::new()).unwrap();
    let merged = Checkpoint::open(&out).unwrap();
    // The base and 2 · 0.5 · B·A.
    assert_eq!(values(&merged, "w"), [4.0, 6.0, 9.0, 12.0]);
    // 1 + 2 · (5 − 1), 1 + 2 · (6 − 1)
    assert_eq!(values(&merged, "norm"), [9.0, 11.0]);
}

#[test]
fn tensors_are_read_as_they_enter_a_merge() {
    let folder = tempdir().unwrap();
    write(folder.path());
    let read = |changes| {
        let (_, changed) = views(folder.path(), changes);
        let mut bytes = [0_u8; 16];
        let buffers = BTreeMap::from([("w".to_owned(), &mut bytes[..])]);
        read_into(&changed, buffers, Some(2), &Monitor::new()).map(|()| {
            let (entries, _) = bytes.as_chunks::<4>();
            entries.iter().map(|entry| f32::from_le_bytes(*entry)).collect::<Vec<f32>>()
        })
    };
    assert_eq!(read(vec![]).unwrap(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(read(vec![("w", low_rank(false))]).unwrap(), [2.5, 4.0, 6.0, 8.0]);
    // The rows [2.5, 4] and [6, 8] with the norms 10 and 1.
    let norm = 22.25_f64.sqrt();
    let dora = read(vec![("w", low_rank(true))]).unwrap();
    let expected = [25.0 / norm, 40.0 / norm, 0.6, 0.8];
    for (found, expected) in dora.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() < 1e-6, "{dora:?}");
    }
    let rows = |places: Vec<usize>| ("w", Change::Rows { tensor: "row".into(), places });
    assert_eq!(read(vec![rows(vec![1])]).unwrap(), [1.0, 2.0, 7.0, 8.0]);
    // One after the other.
    let both = vec![("w", low_rank(false)), rows(vec![0])];
    assert_eq!(read(both).unwrap(), [7.0, 8.0, 6.0, 8.0]);
    let said = read(vec![rows(vec![2])]).unwrap_err().to_string();
    assert!(said.contains("row") && said.contains("does not fit 1 rows"), "{said}");
}

#[test]
fn changes_that_fit_nothing_are_refused_by_name() {
    let folder = tempdir().unwrap();
    write(folder.path());
    let refusal = |name, change| {
        let (base, changed) = views(folder.path(), vec![(name, change)]);
        let builder = Builder::new("task_arithmetic").base(base).model(changed);
        builder.numbers("weight", &[1.0]).build().unwrap_err().to_string()
    };
    let said = refusal("v", low_rank(false));
    assert!(said.contains("'v'") && said.contains("an adapter changes it"), "{said}");
    let said = refusal("norm", low_rank(false));
    assert!(said.contains("'a'") && said.contains("no matrix"), "{said}");
    let said = refusal("w", Change::Whole { tensor: "norm".into() });
    assert!(said.contains("'norm'") && said.contains("has shape [2]"), "{said}");
    let said = refusal("w", Change::Whole { tensor: "gone".into() });
    assert!(said.contains("'gone'") && said.contains("is missing"), "{said}");
}
