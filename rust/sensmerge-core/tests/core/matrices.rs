//! Merges of whole matrices: memory, progress and cancelling.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sensmerge_core::Error;
use sensmerge_core::checkpoint::Checkpoint;
use sensmerge_core::engine::{Inputs, Monitor, Options, execute};
use sensmerge_core::manifest::{Builder, Manifest};
use tempfile::tempdir;

use crate::files::{Tensor, f32s, open, plan, values, write_model};

const LAYERS: usize = 30;
const SIZE: usize = 90;

/// Matrices of all directions, and a vector.
fn tensors(model: usize) -> Vec<Tensor> {
    let entry = |layer: usize, place: usize| ((layer * 7919 + place * place + model) as f32).sin();
    let matrix = |layer: usize| {
        let entries: Vec<f32> = (0..SIZE * SIZE).map(|place| entry(layer, place)).collect();
        f32s(&format!("layers.{layer}.w"), &[SIZE, SIZE], &entries)
    };
    let norm = f32s("norm.w", &[2], &[model as f32, 1.0]);
    (0..LAYERS).map(matrix).chain([norm]).collect()
}

fn planned(folder: &std::path::Path) -> (Manifest, Inputs) {
    let names = ["base", "one", "two"].map(|name| folder.join(name));
    for (model, name) in names.iter().enumerate() {
        write_model(name, &tensors(model));
    }
    let models: Vec<Arc<Checkpoint>> = open(&names).unwrap();
    plan(Builder::new("tsv"), Some(&models[0]), &models[1..], |_, view| view).unwrap()
}

#[test]
fn any_budget_and_any_threads_give_the_same_model() {
    let folder = tempdir().unwrap();
    let (manifest, inputs) = planned(folder.path());
    let mut found = BTreeSet::new();
    let budgets = [Some(0), Some(1_500_000), Some(u64::MAX), None];
    for (threads, matrix_bytes) in budgets.map(|budget| (4, budget)).into_iter().chain([(1, None)])
    {
        let options = Options {
            threads: Some(threads),
            matrix_bytes,
            overwrite: true,
            sync: false,
            ..Options::default()
        };
        let (out, monitor) = (folder.path().join("out"), Monitor::new());
        execute(&manifest, &inputs, &out, &[], &[], &options, &monitor).unwrap();
        let (done, expected) = monitor.progress();
        assert_eq!(done, expected);
        let written = Checkpoint::open(&out).unwrap();
        assert_eq!(values(&written, "norm.w"), [1.5, 1.0]);
        found.insert(written.fingerprint());
    }
    assert_eq!(found.len(), 1);
}

#[test]
fn a_merge_is_cancelled_between_matrices() {
    let folder = tempdir().unwrap();
    let (manifest, inputs) = planned(folder.path());
    let (out, monitor) = (folder.path().join("out"), Monitor::new());
    let options = Options { threads: Some(2), ..Options::default() };
    let ended = std::thread::scope(|scope| {
        let merge = scope.spawn(|| execute(&manifest, &inputs, &out, &[], &[], &options, &monitor));
        while monitor.progress().0 == 0 && !merge.is_finished() {
            std::thread::sleep(Duration::from_micros(100));
        }
        monitor.cancel();
        merge.join()
    });
    assert!(matches!(ended, Ok(Err(Error::Interrupted))), "{ended:?}");
    let (done, expected) = monitor.progress();
    assert!(0 < done && done < expected);
    assert!(!out.exists());
}
