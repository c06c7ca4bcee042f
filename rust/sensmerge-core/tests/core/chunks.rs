//! Neither threads nor the size of chunks change a byte of what is written.

use std::fs;

use sensmerge_core::execute::{Monitor, Options, execute};
use sensmerge_core::method::{MethodName, Semantics};
use sensmerge_core::plan::{Inputs, Model, Plan, Recipe, Setting};
use tempfile::tempdir;

use crate::files::{f32s, write_model};

/// Several chunks of the smallest size, the last of them a part of a block.
const ENTRIES: usize = 70_001;

/// A hundred magnitudes of either sign, so that thresholds are shared by entries of every chunk.
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
            f32s("layers.1.w", &[5], &entries(seed + 10)[..5]),
        ];
        write_model(path, &tensors);
    }
    let [base, experts @ ..] = &paths;
    let model = |path| Model {
        density: Setting::uniform(0.3),
        ties_density: Setting::uniform(0.6),
        ..Model::new(path)
    };
    let methods = [
        MethodName::Linear,
        MethodName::TaskArithmetic,
        MethodName::Ties,
        MethodName::DareLinear,
        MethodName::DareTies,
    ];
    for method in methods {
        for semantics in [Semantics::Mergekit, Semantics::Original] {
            let recipe = Recipe {
                method,
                semantics,
                base: Some(base.clone()),
                models: experts.iter().map(model).collect(),
                lambda: Setting::uniform(1.0),
                normalize: None,
                rescale: None,
                seed: 3,
                out_dtype: None,
            };
            let inputs = Inputs::open(&recipe).unwrap();
            let plan = Plan::new(&recipe, &inputs, u64::MAX).unwrap();
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
                execute(&plan, &out, &[], &options, &Monitor::new()).unwrap();
                fs::read(out.join("model.safetensors")).unwrap()
            };
            let expected = written(1, usize::MAX);
            for (threads, chunk_bytes) in [(1, 1), (2, 16_384), (3, 100_003), (8, 1 << 16)] {
                let same = written(threads, chunk_bytes) == expected;
                assert!(same, "{method:?} {semantics:?}: {threads} threads, {chunk_bytes} bytes");
            }
        }
    }
}
