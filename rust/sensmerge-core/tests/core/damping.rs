//! Merged task vectors that are damped by input channel, whatever the method.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use sensmerge_core::checkpoint::Checkpoint;
use sensmerge_core::engine::{Inputs, Monitor, Options, execute};
use sensmerge_core::manifest::{Activations, Builder, Manifest, View};
use sensmerge_core::method::{Base, Semantics, schemas};
use tempfile::tempdir;

use crate::files::{f32s, open, write_model};

const OMEGA: f64 = 0.25;

/// Name, shape, and for every entry the index of its channel; with rows that end within blocks.
fn tensors() -> Vec<(&'static str, Vec<usize>, Vec<usize>)> {
    let (rows, columns) = (70, 90);
    let entries = rows * columns;
    let by_column = |entry: usize| entry % columns;
    let by_row = |entry: usize| entry / columns;
    // Each of the two matrices of a tensor has channels of its own.
    let stacked = |entry: usize| entry / entries * columns + entry % columns;
    vec![
        ("matrix", vec![rows, columns], (0..entries).map(by_column).collect()),
        ("transposed", vec![rows, columns], (0..entries).map(by_row).collect()),
        ("stacked", vec![2, rows, columns], (0..2 * entries).map(stacked).collect()),
        ("norm", vec![3001], (0..3001).collect()),
    ]
}

fn entries(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let draw = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from((state >> 16) as i16) / 32768.0
    };
    (0..count).map(draw).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn every_method_is_damped_by_channels() {
    let folder = tempdir().unwrap();
    let paths = ["base", "one", "two", "three"].map(|name| folder.path().join(name));
    for (seed, path) in (1..).zip(&paths) {
        let of = |(name, shape, channels): (&str, Vec<usize>, Vec<usize>)| {
            f32s(name, &shape, &entries(channels.len(), seed))
        };
        let mut found: Vec<_> = tensors().into_iter().map(of).collect();
        found.push(f32s("bias", &[5000], &entries(5000, seed)));
        write_model(path, &found);
    }
    let activations: Vec<(&str, Vec<usize>, Vec<f32>)> = tensors()
        .into_iter()
        .map(|(name, shape, channels)| {
            let shape = match name {
                "transposed" => vec![shape[0]],
                "stacked" => vec![shape[0], shape[2]],
                _ => vec![*shape.last().unwrap()],
            };
            let count = channels.iter().max().unwrap() + 1;
            (name, shape, entries(count, 9).iter().map(|entry| entry.abs()).collect())
        })
        .collect();
    let path = folder.path().join("activations");
    let stored: Vec<_> =
        activations.iter().map(|(name, shape, values)| f32s(name, shape, values)).collect();
    write_model(&path, &stored);
    let measured = Activations {
        checkpoint: Arc::new(Checkpoint::open(&path).unwrap()),
        transposed: BTreeSet::from(["transposed".to_owned()]),
    };
    let checkpoints = open(&paths).unwrap();
    let (base, experts) = checkpoints.split_first().unwrap();
    let written = |manifest: &Manifest, options: Options| {
        let (out, inputs) = (folder.path().join("out"), Inputs::open(manifest).unwrap());
        let options = Options { overwrite: true, sync: false, ..options };
        execute(manifest, &inputs, &out, &[], &[], &options, &Monitor::new()).unwrap();
        let bytes = fs::read(out.join("model.safetensors")).unwrap();
        let merged = Checkpoint::open(&out).unwrap();
        let of = |name: &str| floats(merged.bytes(merged.get(name).unwrap()));
        let names = tensors().into_iter().map(|(name, ..)| name).chain(["bias"]);
        (bytes, names.map(|name| (name, of(name))).collect::<Vec<_>>())
    };
    let based = |base: Base| matches!(base, Base::Needed | Base::Optional);
    let methods = schemas(Semantics::Mergekit).into_iter();
    for schema in methods.filter(|schema| based(schema.base) && schema.statistic.is_none()) {
        let count = schema.models.most.unwrap_or(3).min(3);
        let planned = |omega: Option<f64>| {
            let mut builder = Builder::new(schema.name)
                .base(View::new(Arc::clone(base)).activations(measured.clone()));
            for expert in &experts[..count] {
                builder = builder.model(View::new(Arc::clone(expert)));
            }
            for name in ["density", "weight"] {
                if schema.parameter(name).is_some() {
                    builder = builder.numbers(name, &vec![0.6; count]);
                }
            }
            if schema.parameter("t").is_some() {
                builder = builder.number("t", 0.3);
            }
            omega.into_iter().fold(builder, Builder::omega).build().unwrap()
        };
        let damped = planned(Some(OMEGA));
        let (bytes, found) = written(&damped, Options::default());
        for (threads, chunk_bytes) in [(1, 1), (3, 10_000)] {
            let options = Options { threads: Some(threads), chunk_bytes, ..Options::default() };
            assert!(written(&damped, options).0 == bytes, "{}", schema.name);
        }
        let (_, plain) = written(&planned(None), Options::default());
        for ((name, damped), (_, plain)) in found.iter().zip(&plain) {
            let known = tensors().into_iter().find(|tensor| tensor.0 == *name);
            let Some((_, _, channels)) = known else {
                assert_eq!(damped, plain, "{} {name}", schema.name);
                continue;
            };
            let (_, _, s) = activations.iter().find(|each| each.0 == *name).unwrap();
            let base = floats(base.bytes(base.get(name).unwrap()));
            for (entry, &channel) in channels.iter().enumerate() {
                let factor = 1.0 - f64::from(s[channel]) * (1.0 - OMEGA);
                let origin = f64::from(base[entry]);
                let wanted = origin + factor * (f64::from(plain[entry]) - origin);
                let apart = (f64::from(damped[entry]) - wanted).abs();
                assert!(apart < 1e-5 * (1.0 + wanted.abs()), "{} {name} {entry}", schema.name);
            }
        }
    }
}

#[test]
fn a_manifest_that_damps_otherwise_is_refused() {
    let folder = tempdir().unwrap();
    let paths = ["base", "one", "activations"].map(|name| folder.path().join(name));
    for path in &paths[..2] {
        write_model(path, &[f32s("w", &[2, 3], &[1.0; 6])]);
    }
    write_model(&paths[2], &[f32s("w", &[3], &[1.0; 3])]);
    let opened = open(&paths).unwrap();
    let [base, one, activations] = &opened[..] else { panic!("three models") };
    let planned = |transposed: &[&str], method: &str| {
        let activations = Activations {
            checkpoint: Arc::clone(activations),
            transposed: transposed.iter().map(ToString::to_string).collect(),
        };
        let base = View::new(Arc::clone(base)).activations(activations);
        let builder = Builder::new(method).base(base).model(View::new(Arc::clone(one)));
        builder.omega(0.5).build().map_err(|error| error.to_string())
    };
    let said = planned(&["w"], "task_arithmetic").unwrap_err();
    assert_eq!(said, "w: has shape [2, 3], and the activations that damp it have shape [3]");
    let said = planned(&[], "linear").unwrap_err();
    assert!(said.starts_with("aim: linear merges no task vectors here"), "{said}");
    let text = planned(&[], "task_arithmetic").unwrap().to_json().unwrap();
    assert!(Manifest::from_json(&text).is_ok());
    let said = Manifest::from_json(&text.replace("\"omega\":0.5", "\"omega\":1.5")).unwrap_err();
    assert_eq!(said.to_string(), "w: omega is 1.5, which is not at least 0 and at most 1");
}
