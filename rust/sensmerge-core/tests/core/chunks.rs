//! Neither the number of threads nor the size of chunks changes a byte of the output.

use std::fs;

use sensmerge_core::engine::{Monitor, Options, execute};
use sensmerge_core::manifest::Builder;
use sensmerge_core::method::{Base, Owner, Semantics, schemas};
use tempfile::tempdir;

use crate::files::{f32s, open, plan, write_model};

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

#[test]
fn bytes_depend_on_no_option() {
    let folder = tempdir().unwrap();
    let paths = ["base", "one", "two", "three"].map(|name| folder.path().join(name));
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
                let (manifest, inputs) =
                    plan(builder, base, &experts[..models], |_, input| input).unwrap();
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
                    execute(&manifest, &inputs, &out, &[], &[], &options, &Monitor::new()).unwrap();
                    fs::read(out.join("model.safetensors")).unwrap()
                };
                let expected = written(1, usize::MAX);
                for (threads, chunk_bytes) in [(1, 1), (2, 16_384), (3, 100_003), (8, 1 << 16)] {
                    let same = written(threads, chunk_bytes) == expected;
                    let name = schema.name;
                    assert!(same, "{name} {semantics:?}: {threads} threads, {chunk_bytes} bytes");
                }
            }
        }
    }
}
