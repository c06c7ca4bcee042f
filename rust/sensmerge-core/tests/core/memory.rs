//! Merges in memory: inputs without files, outputs in the caller's buffers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use sensmerge_core::checkpoint::{Checkpoint, MemoryTensor};
use sensmerge_core::dtype::Dtype;
use sensmerge_core::engine::{Inputs, Monitor, Options, execute, execute_into};
use sensmerge_core::manifest::Builder;
use sensmerge_core::{Error, Result};
use tempfile::tempdir;

use crate::files::{Tensor, f32s, plan, write_model};

fn builder() -> Builder {
    Builder::new("dare_ties").numbers("density", &[0.5]).number("lambda", 0.5).seed(1)
}

fn tensors(shift: f32) -> Vec<Tensor> {
    let values: Vec<f32> = (0..5000).map(|place| (place as f32).sin() + shift).collect();
    vec![f32s("layers.0.w", &[5000], &values), f32s("head.w", &[2], &[shift, 1.0])]
}

fn in_memory(name: &str, tensors: &[Tensor]) -> Result<Checkpoint> {
    let tensor = |(name, dtype, shape, bytes): &Tensor| MemoryTensor {
        name: name.clone(),
        dtype: Dtype::from_name(dtype).unwrap(),
        shape: shape.clone(),
        bytes: Box::new(bytes.clone()),
    };
    Checkpoint::from_memory(name, tensors.iter().map(tensor).collect())
}

#[test]
fn memory_and_files_merge_to_the_same_bytes() {
    let folder = tempdir().unwrap();
    let base = Arc::new(in_memory("base", &tensors(0.0)).unwrap());
    write_model(&folder.path().join("one"), &tensors(0.1));
    let on_disk = Arc::new(Checkpoint::open(&folder.path().join("one")).unwrap());
    let (manifest, inputs) =
        plan(builder(), Some(&base), &[Arc::clone(&on_disk)], |_, input| input).unwrap();
    assert_eq!(manifest.inputs(), [folder.path().join("one")]);
    let said = Inputs::open(&manifest).unwrap_err().to_string();
    assert!(said.contains("base: was in memory"), "{said}");
    let (options, monitor) = (Options::default(), Monitor::new());

    let mut merged: BTreeMap<String, Vec<u8>> =
        base.tensors().map(|tensor| (tensor.name.clone(), vec![0; tensor.nbytes()])).collect();
    let buffers = merged.iter_mut().map(|(name, bytes)| (name.clone(), bytes.as_mut_slice()));
    execute_into(&manifest, &inputs, buffers.collect(), &options, &monitor).unwrap();

    execute(&manifest, &inputs, &folder.path().join("out"), &[], &[], &options, &monitor).unwrap();
    let written = Checkpoint::open(&folder.path().join("out")).unwrap();
    for tensor in written.tensors() {
        assert!(written.bytes(tensor) == merged[&tensor.name], "{}", tensor.name);
    }
    assert_eq!(in_memory("x", &tensors(0.1)).unwrap().fingerprint(), on_disk.fingerprint());
}

#[test]
fn checkpoints_are_as_many_as_the_manifest_names() {
    let base = Arc::new(in_memory("base", &tensors(0.0)).unwrap());
    let models = [Arc::new(in_memory("model", &tensors(0.1)).unwrap())];
    let (manifest, _) = plan(builder(), Some(&base), &models, |_, input| input).unwrap();
    for count in [0, 1, 3] {
        let given = std::iter::repeat_n(Arc::clone(&base), count).collect();
        let said = Inputs::of(&manifest, given).unwrap_err().to_string();
        assert!(said.contains(&format!("{count} checkpoints are given for the 2")), "{said}");
    }
}

#[test]
fn tensors_that_lie_are_refused_by_name() {
    let refusal = |tensors: &[Tensor]| match in_memory("somewhere", tensors) {
        Err(Error::Tensor { path, tensor, reason, .. }) => {
            assert_eq!(path, Path::new("somewhere"));
            assert_eq!(tensor, "head.w");
            reason
        }
        other => panic!("{other:?}"),
    };
    let head = f32s("head.w", &[2], &[1.0, 2.0]);
    assert!(refusal(&[head.clone(), head]).contains("given twice"));
    assert!(refusal(&[f32s("head.w", &[3], &[1.0])]).contains("[3] of F32 is not 4 bytes"));
    assert!(refusal(&[f32s("head.w", &[usize::MAX, 2], &[1.0])]).contains("not 4 bytes"));
}

#[test]
fn memory_with_two_names_is_one_tensor() {
    let shared: Arc<[u8]> = Arc::from([0; 8]);
    let tensor = |name: &str, shape: &[usize]| MemoryTensor {
        name: name.into(),
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        bytes: Box::new(Arc::clone(&shared)),
    };
    let tensors = vec![tensor("embedding", &[2]), tensor("head", &[2]), tensor("other", &[2, 1])];
    let checkpoint = Checkpoint::from_memory("tied", tensors).unwrap();
    let names: Vec<&str> = checkpoint.tensors().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["embedding", "other"]);
    assert_eq!(checkpoint.tied()["head"], "embedding");
    assert!(checkpoint.in_memory());
}
