//! Neither the number of threads nor the size of chunks changes a byte of the output.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use sensmerge_core::checkpoint::Checkpoint;
use sensmerge_core::engine::{Inputs, Monitor, Options, execute};
use sensmerge_core::manifest::{Builder, Manifest, View};
use sensmerge_core::method::{Base, Owner, Semantics, Statistic, schemas};
use tempfile::tempdir;

use crate::files::{f32s, open, planned, write_model};

/// Several chunks of the smallest size, the last one shorter than a block.
const ENTRIES: usize = 70_001;

/// 100 magnitudes of both signs, so that every chunk has entries equal to a threshold.
fn entries(seed: u32) -> Vec<f32> {
    let mut state = seed;
    let draw = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from((state >> 16) as i16 / 328) / 1000.0
    };
    (0..ENTRIES).map(draw).collect()
}

/// What was measured of a model, and its tensors by the names of the model's.
fn measured(
    folder: &Path,
    place: usize,
    statistic: Statistic,
) -> (Arc<Checkpoint>, BTreeMap<String, String>) {
    let path = folder.join(format!("{statistic:?}{place}"));
    let importances: Vec<f32> =
        entries(u32::try_from(place).unwrap() + 20).iter().map(|entry| entry.abs()).collect();
    let inputs = 1000;
    let gram: Vec<f32> = (0..inputs * inputs)
        .map(|at| if at % (inputs + 1) == 0 { 1.0 + importances[at % inputs] } else { 0.0 })
        .collect();
    let tensors = match statistic {
        Statistic::Fisher => vec![
            f32s("layers.0.w", &[ENTRIES], &importances),
            f32s("layers.0.matrix", &[70, inputs], &importances[..70 * inputs]),
        ],
        Statistic::Gram => vec![f32s("layers.0.matrix", &[inputs, inputs], &gram)],
    };
    write_model(&path, &tensors);
    let names = tensors.iter().map(|(name, ..)| (name.clone(), name.clone())).collect();
    (Arc::new(Checkpoint::open(&path).unwrap()), names)
}

/// Call `see` with the name and the manifest of every method's merge of three models in `folder`.
pub(crate) fn every_method(folder: &Path, see: impl Fn(&str, &Manifest)) {
    let paths = ["base", "one", "two", "three"].map(|name| folder.join(name));
    for (seed, path) in (1..).zip(&paths) {
        let tensors = [
            f32s("layers.0.w", &[ENTRIES], &entries(seed)),
            f32s("layers.0.matrix", &[70, 1000], &entries(seed + 5)[..70_000]),
            f32s("layers.1.w", &[5], &entries(seed + 10)[..5]),
        ];
        write_model(path, &tensors);
    }
    let checkpoints = open(&paths).unwrap();
    let (base, experts) = checkpoints.split_first().unwrap();
    for semantics in [Semantics::Mergekit, Semantics::Original] {
        for schema in schemas(semantics) {
            let mut builder = Builder::new(schema.name).semantics(semantics).seed(3);
            let models = schema.models.most.unwrap_or(3).min(3);
            let models = if schema.base == Base::Merged { models - 1 } else { models };
            for (name, number) in [("density", 0.3), ("ties_density", 0.6), ("t", 0.3)] {
                match schema.parameter(name).map(|parameter| parameter.owner) {
                    Some(Owner::Model) => {
                        builder = builder.numbers(name, &vec![number; models]);
                    }
                    Some(Owner::Merge) => builder = builder.number(name, number),
                    None => {}
                }
            }
            for by_rows in [false, true] {
                let mut builder = builder.clone();
                for (name, on) in [
                    ("filter_wise", by_rows),
                    ("nuslerp_flatten", false),
                    ("nuslerp_row_wise", by_rows),
                ] {
                    if schema.parameter(name).is_some() {
                        builder = builder.switch(name, on);
                    }
                }
                let base = (schema.base != Base::Unused).then_some(base);
                let measured = |place: usize, view: View| match schema.statistic {
                    None => view,
                    Some(statistic) => {
                        let (checkpoint, names) = measured(folder, place, statistic);
                        view.statistics(checkpoint, names)
                    }
                };
                let manifest = planned(builder, base, &experts[..models], measured).unwrap();
                see(&format!("{} {semantics:?}", schema.name), &manifest);
            }
        }
    }
}

#[test]
fn bytes_depend_on_no_option() {
    let folder = tempdir().unwrap();
    every_method(folder.path(), |name, manifest| {
        let inputs = Inputs::open(manifest).unwrap();
        let written = |threads, chunk_bytes| {
            let out = folder.path().join("out");
            let threads = Some(threads);
            let options = Options {
                threads,
                chunk_bytes,
                overwrite: true,
                sync: false,
                ..Options::default()
            };
            execute(manifest, &inputs, &out, &[], &[], &options, &Monitor::new()).unwrap();
            fs::read(out.join("model.safetensors")).unwrap()
        };
        let expected = written(1, usize::MAX);
        for (threads, chunk_bytes) in [(1, 1), (2, 16_384), (3, 100_003), (8, 1 << 16)] {
            let same = written(threads, chunk_bytes) == expected;
            assert!(same, "{name}: {threads} threads, {chunk_bytes} bytes");
        }
    });
}
