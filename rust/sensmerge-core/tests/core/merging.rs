//! Merges through the public door, against arithmetic done by hand. The methods themselves are
//! held against the NumPy reference from Python.

use std::fs;
use std::path::{Path, PathBuf};

use sensmerge_core::checkpoint::Checkpoint;
use sensmerge_core::dtype::Float;
use sensmerge_core::execute::{Monitor, Options, Sidecar, Summary, execute};
use sensmerge_core::method::{MethodName, Semantics};
use sensmerge_core::plan::{Inputs, Model, Plan, Recipe, Setting};
use sensmerge_core::{Error, Result};
use tempfile::{TempDir, tempdir};

use crate::files::{Tensor, f32s, values, write_model};

const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// A base and two experts of two layers.
struct Family {
    root: TempDir,
}

impl Family {
    fn new() -> Self {
        let family = Self { root: tempdir().unwrap() };
        family.write("base", &[1.0, 2.0, 3.0], 10.0);
        family.write("one", &[2.0, 2.0, 1.0], 11.0);
        family.write("two", &[1.0, 4.0, 2.0], 13.0);
        family
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, inner: &[f32], outer: f32) {
        self.write_tensors(
            name,
            &[f32s("layers.0.w", &[3], inner), f32s("head.w", &[1], &[outer])],
        );
    }

    fn write_tensors(&self, name: &str, tensors: &[Tensor]) {
        write_model(&self.path(name), tensors);
    }

    fn recipe(&self, method: MethodName) -> Recipe {
        Recipe {
            method,
            semantics: Semantics::Mergekit,
            base: Some(self.path("base")),
            models: vec![Model::new(self.path("one")), Model::new(self.path("two"))],
            lambda: Setting::uniform(1.0),
            normalize: None,
            rescale: None,
            seed: 0,
            out_dtype: None,
        }
    }

    fn merge(&self, recipe: &Recipe) -> Result<Summary> {
        run(recipe, &self.path("out"), &[], &Options::default(), &Monitor::new())
    }

    fn merged(&self, name: &str) -> Vec<f32> {
        values(&Checkpoint::open(&self.path("out")).unwrap(), name)
    }

    /// What is said when the merge is refused; it must leave nothing behind.
    fn refusal(&self, recipe: &Recipe) -> String {
        let said = self.merge(recipe).expect_err("refused").to_string();
        assert!(!self.path("out").exists(), "{said}");
        said
    }
}

fn run(
    recipe: &Recipe,
    output: &Path,
    sidecars: &[Sidecar],
    options: &Options,
    monitor: &Monitor,
) -> Result<Summary> {
    let inputs = Inputs::open(recipe)?;
    let plan = Plan::new(recipe, &inputs, MAX_SHARD_BYTES)?;
    execute(&plan, output, sidecars, options, monitor)
}

#[test]
fn weights_by_layer_reach_their_tensors() {
    let family = Family::new();
    let mut recipe = family.recipe(MethodName::TaskArithmetic);
    recipe.models[0].weight.layers.insert("layers.0".into(), 3.0);
    recipe.lambda = Setting::uniform(0.5);
    family.merge(&recipe).unwrap();
    // 1 + (3·1 + 0)/2, 2 + (0 + 2)/2, 3 + (3·(−2) − 1)/2
    assert_eq!(family.merged("layers.0.w"), [2.5, 3.0, -0.5]);
    assert_eq!(family.merged("head.w"), [12.0]);
}

#[test]
fn linear_needs_no_base() {
    let family = Family::new();
    let mut recipe = family.recipe(MethodName::Linear);
    recipe.base = None;
    recipe.models[1].weight = Setting::uniform(3.0);
    family.merge(&recipe).unwrap();
    assert_eq!(family.merged("head.w"), [(11.0 + 3.0 * 13.0) / 4.0]);

    recipe.models[1].weight = Setting::uniform(-1.0);
    fs::remove_dir_all(family.path("out")).unwrap();
    assert!(family.refusal(&recipe).contains("sum to 0"));
}

#[test]
fn ties_elects_signs() {
    let family = Family::new();
    family.write("one", &[2.0, -3.0, 3.0], 10.0);
    family.merge(&family.recipe(MethodName::Ties)).unwrap();
    // Task vectors [1, −5, 0] and [0, 2, −1]: the second entry's − wins against its +.
    assert_eq!(family.merged("layers.0.w"), [2.0, -3.0, 2.0]);
}

#[test]
fn float64_inputs_are_computed_in_float64() {
    let family = Family::new();
    let double = |value: f64| -> Tensor {
        ("layers.0.w".into(), "F64", vec![1], value.to_le_bytes().to_vec())
    };
    let tiny = 2.0_f64.powi(-40);
    family.write_tensors("base", &[double(1.0)]);
    family.write_tensors("one", &[double(1.0 + tiny)]);
    family.write_tensors("two", &[double(1.0 + 2.0 * tiny)]);
    family.merge(&family.recipe(MethodName::TaskArithmetic)).unwrap();
    let merged = Checkpoint::open(&family.path("out")).unwrap();
    let bytes = merged.bytes(merged.get("layers.0.w").unwrap());
    assert_eq!(f64::from_le_bytes(bytes.try_into().unwrap()), 1.0 + 3.0 * tiny);
}

#[test]
fn what_cannot_be_matched_is_refused_by_name() {
    let family = Family::new();
    let recipe = family.recipe(MethodName::TaskArithmetic);
    let inner = f32s("layers.0.w", &[3], &[1.0; 3]);
    let head = f32s("head.w", &[1], &[1.0]);

    family.write_tensors("one", std::slice::from_ref(&inner));
    assert!(family.refusal(&recipe).contains("'head.w': is missing"));
    family.write_tensors("one", &[inner.clone(), head.clone(), f32s("new", &[1], &[1.0])]);
    assert!(family.refusal(&recipe).contains("'new': is not in"));
    family.write_tensors("one", &[f32s("layers.0.w", &[1, 3], &[1.0; 3]), head.clone()]);
    assert!(family.refusal(&recipe).contains("'layers.0.w': has shape [1, 3]"));
    let integers = ("head.w".to_owned(), "I32", vec![1], vec![0; 4]);
    family.write_tensors("one", &[inner, integers]);
    assert!(family.refusal(&recipe).contains("'head.w': is I32"));
}

#[test]
fn other_dtypes_are_copied_where_all_agree() {
    let family = Family::new();
    let with =
        |byte: u8| [f32s("w", &[1], &[1.0]), ("mask".to_owned(), "U8", vec![2], vec![byte, 7])];
    for name in ["base", "one", "two"] {
        family.write_tensors(name, &with(3));
    }
    let recipe = family.recipe(MethodName::TaskArithmetic);
    family.merge(&recipe).unwrap();
    let merged = Checkpoint::open(&family.path("out")).unwrap();
    assert_eq!(merged.bytes(merged.get("mask").unwrap()), [3, 7]);
    fs::remove_dir_all(family.path("out")).unwrap();
    family.write_tensors("two", &with(4));
    assert!(family.refusal(&recipe).contains("'mask': differs"));
}

#[test]
fn tied_and_computed_tensors_follow_stated_rules() {
    let family = Family::new();
    let inner = f32s("layers.0.w", &[3], &[2.0; 3]);
    let buffer = f32s("layers.0.rotary_emb.inv_freq", &[1], &[0.5]);
    family.write_tensors("one", &[inner, buffer]);
    let mut recipe = family.recipe(MethodName::TaskArithmetic);
    recipe.models[0].aliases.insert("head.w".into(), "layers.0.w".into());
    assert!(family.refusal(&recipe).contains("'head.w': has shape [3]"));

    family.write_tensors(
        "one",
        &[f32s("embed.w", &[1], &[12.0]), f32s("layers.0.w", &[3], &[1.0; 3])],
    );
    let base = [f32s("embed.w", &[1], &[9.0]), f32s("layers.0.w", &[3], &[0.0; 3])];
    family.write_tensors("base", &[base[0].clone(), base[1].clone(), f32s("head.w", &[1], &[9.0])]);
    recipe.models.truncate(1);
    recipe.models[0].aliases.insert("head.w".into(), "embed.w".into());
    family.merge(&recipe).unwrap();
    assert_eq!(family.merged("head.w"), [12.0]);
}

#[test]
fn extra_rows_are_left_out_only_where_allowed() {
    let family = Family::new();
    family.write_tensors("base", &[f32s("embed.w", &[2, 1], &[1.0, 2.0])]);
    family.write_tensors("one", &[f32s("embed.w", &[3, 1], &[2.0, 3.0, 99.0])]);
    let mut recipe = family.recipe(MethodName::TaskArithmetic);
    recipe.models.truncate(1);
    assert!(family.refusal(&recipe).contains("has shape [3, 1]"));
    recipe.models[0].leading_rows = vec!["embed.w".into()];
    let summary = family.merge(&recipe).unwrap();
    assert_eq!(family.merged("embed.w"), [2.0, 3.0]);
    assert!(summary.notes[0].contains("3 rows"), "{:?}", summary.notes);
}

#[test]
fn what_is_not_finite_is_refused_unless_allowed() {
    let family = Family::new();
    let mut recipe = family.recipe(MethodName::TaskArithmetic);
    family.write("one", &[2.0, f32::NAN, 1.0], 11.0);
    let said = family.refusal(&recipe);
    assert!(said.contains("'layers.0.w': holds NaN") && said.contains("one"), "{said}");
    let allowed = Options { allow_nan: true, ..Options::default() };
    run(&recipe, &family.path("out"), &[], &allowed, &Monitor::new()).unwrap();
    let merged = family.merged("layers.0.w");
    assert!(merged[1].is_nan() && merged[0] == 2.0);

    fs::remove_dir_all(family.path("out")).unwrap();
    family.write("one", &[2.0, f32::INFINITY, 1.0], 11.0);
    family.write("base", &[2.0, f32::INFINITY, 1.0], 11.0);
    assert!(family.refusal(&recipe).contains("merge to NaN"));

    let family = Family::new();
    family.write("one", &[60000.0, 1.0, 1.0], 11.0);
    recipe = family.recipe(MethodName::TaskArithmetic);
    recipe.lambda = Setting::uniform(2.0);
    recipe.out_dtype = Some(Float::F16);
    assert!(family.refusal(&recipe).contains("float16's range"));
}

#[test]
fn a_cancelled_merge_leaves_nothing() {
    let family = Family::new();
    let monitor = Monitor::new();
    monitor.cancel();
    let recipe = family.recipe(MethodName::Ties);
    let out = family.path("out");
    let result = run(&recipe, &out, &[], &Options::default(), &monitor);
    assert!(matches!(result, Err(Error::Interrupted)));
    assert!(!out.exists());
}

#[test]
fn sidecars_stand_beside_the_weights() {
    let family = Family::new();
    let source = family.path("base").join("model.safetensors");
    let sidecars = [
        Sidecar::Text { name: "README.md".into(), content: "hello".into() },
        Sidecar::Copy { name: "copy.bin".into(), from: source.clone() },
    ];
    let recipe = family.recipe(MethodName::TaskArithmetic);
    let (out, options) = (family.path("out"), Options::default());
    run(&recipe, &out, &sidecars, &options, &Monitor::new()).unwrap();
    assert_eq!(fs::read_to_string(out.join("README.md")).unwrap(), "hello");
    assert_eq!(fs::read(out.join("copy.bin")).unwrap(), fs::read(source).unwrap());
}

#[test]
fn the_example_merges() {
    let family = Family::new();
    // Cargo builds examples beside the tests: <profile>/deps/this, <profile>/examples/merge.
    let tests = std::env::current_exe().unwrap();
    let example = tests.parent().unwrap().with_file_name("examples").join("merge");
    let paths = ["out", "base", "one", "two"].map(|name| family.path(name));
    let status = std::process::Command::new(example).args(paths).status().unwrap();
    assert!(status.success());
    assert_eq!(family.merged("head.w"), [12.0]);
}
