//! Merges through the public interface, compared with arithmetic done by hand. The methods themselves
//! are compared with the NumPy reference by the Python tests.

use std::fs;
use std::path::PathBuf;

use sensmerge_core::checkpoint::Checkpoint;
use sensmerge_core::dtype::Float;
use sensmerge_core::engine::{Inputs, Monitor, Options, Sidecar, Summary, execute};
use sensmerge_core::manifest::{Builder, Manifest, Number, Numbers, View};
use sensmerge_core::{Error, Result};
use tempfile::{TempDir, tempdir};

use crate::files::{Tensor, f32s, open, plan, values, write_model};

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

    fn plan(&self, builder: Builder, models: &[&str]) -> Result<(Manifest, Inputs)> {
        self.plan_changed(builder, models, |_, input| input)
    }

    fn plan_changed(
        &self,
        builder: Builder,
        models: &[&str],
        change: impl Fn(usize, View) -> View,
    ) -> Result<(Manifest, Inputs)> {
        let paths: Vec<PathBuf> = models.iter().map(|name| self.path(name)).collect();
        plan(builder, open(&[self.path("base")])?.first(), &open(&paths)?, change)
    }

    fn write_out(&self, planned: Result<(Manifest, Inputs)>, options: &Options) -> Result<Summary> {
        let (manifest, inputs) = planned?;
        execute(&manifest, &inputs, &self.path("out"), &[], &[], options, &Monitor::new())
    }

    fn merge(&self, builder: Builder) -> Result<Summary> {
        self.write_out(self.plan(builder, &["one", "two"]), &Options::default())
    }

    fn merged(&self, name: &str) -> Vec<f32> {
        values(&Checkpoint::open(&self.path("out")).unwrap(), name)
    }

    /// The message of a merge that is refused and must leave nothing behind.
    fn refusal(&self, planned: Result<(Manifest, Inputs)>) -> String {
        let refused = self.write_out(planned, &Options::default());
        let said = refused.expect_err("refused").to_string();
        assert!(!self.path("out").exists(), "{said}");
        said
    }
}

fn weights(weights: &[f64]) -> Numbers {
    Numbers::from([("weight".to_owned(), Number::Models(weights.to_vec()))])
}

fn task_arithmetic() -> Builder {
    Builder::new("task_arithmetic")
}

#[test]
fn numbers_by_tensor_reach_their_tensors() {
    let family = Family::new();
    let builder = task_arithmetic().number("lambda", 0.5);
    family.merge(builder.tensor("layers.0.w", weights(&[3.0, 1.0]))).unwrap();
    // 1 + (3·1 + 0)/2, 2 + (0 + 2)/2, 3 + (3·(−2) − 1)/2
    assert_eq!(family.merged("layers.0.w"), [2.5, 3.0, -0.5]);
    assert_eq!(family.merged("head.w"), [12.0]);
}

#[test]
fn numbers_that_belong_nowhere_are_refused() {
    let family = Family::new();
    let said = |builder| family.refusal(family.plan(builder, &["one", "two"]));
    let unknown = task_arithmetic().tensor("layers.7.w", weights(&[1.0, 1.0]));
    assert!(said(unknown).contains("layers.7.w"));
    assert!(said(task_arithmetic().number("density", 0.5)).contains("parameters.density"));
    assert!(said(task_arithmetic().numbers("weight", &[1.0])).contains("parameters.weight"));
    assert!(said(task_arithmetic().number("weight", 1.0)).contains("parameters.weight"));
    assert!(said(task_arithmetic().switch("rescale", true)).contains("parameters.rescale"));
    let nan = task_arithmetic().numbers("weight", &[1.0, f64::NAN]);
    assert!(said(nan).contains("models[1].parameters.weight"));
    let beyond = Builder::new("ties").numbers("density", &[0.5, 1.5]);
    assert!(said(beyond).contains("1.5 for 'head.w' is not above 0 and at most 1"));
    assert!(said(Builder::new("tie")).contains("'tie' is not a known method"));
    assert!(said(Builder::new("slerp").number("t", 0.5)).contains("merges exactly 2 models"));
    let one = family.plan(Builder::new("slerp"), &["one"]);
    assert!(family.refusal(one).contains("parameters.t"));
}

#[test]
fn linear_needs_no_base() {
    let family = Family::new();
    let planned = |weights: &[f64]| {
        let models = open(&[family.path("one"), family.path("two")])?;
        plan(Builder::new("linear").numbers("weight", weights), None, &models, |_, input| input)
    };
    family.write_out(planned(&[1.0, 3.0]), &Options::default()).unwrap();
    assert_eq!(family.merged("head.w"), [(11.0 + 3.0 * 13.0) / 4.0]);

    fs::remove_dir_all(family.path("out")).unwrap();
    assert!(family.refusal(planned(&[1.0, -1.0])).contains("sum to 0"));
}

#[test]
fn ties_elects_signs() {
    let family = Family::new();
    family.write("one", &[2.0, -3.0, 3.0], 10.0);
    family.merge(Builder::new("ties")).unwrap();
    // Task vectors [1, −5, 0] and [0, 2, −1]: the second entry's − wins against its +.
    assert_eq!(family.merged("layers.0.w"), [2.0, -3.0, 2.0]);
}

#[test]
fn slerp_goes_along_the_arc() {
    let family = Family::new();
    family.write("base", &[3.0, 0.0, 0.0], 1.0);
    family.write("one", &[0.0, 4.0, 0.0], 2.0);
    let planned = family.plan(Builder::new("slerp").number("t", 0.5), &["one"]);
    family.write_out(planned, &Options::default()).unwrap();
    // A right angle: both by sin(π/4); of scalars, which lie on one line, the mean.
    let half = std::f32::consts::FRAC_1_SQRT_2;
    assert_eq!(family.merged("layers.0.w"), [3.0 * half, 4.0 * half, 0.0]);
    assert_eq!(family.merged("head.w"), [1.5]);
}

#[test]
fn a_head_that_a_model_lacks_may_be_a_constant() {
    let family = Family::new();
    family.write_tensors("one", &[f32s("layers.0.w", &[3], &[1.0; 3])]);
    let planned = family.plan_changed(task_arithmetic(), &["one"], |_, input| {
        input.constant("head.w", vec![1], 0.0)
    });
    family.write_out(planned, &Options::default()).unwrap();
    assert_eq!(family.merged("head.w"), [0.0]);
}

#[test]
fn a_manifest_is_carried_out_by_whoever_reads_it() {
    let family = Family::new();
    let builder = Builder::new("dare_ties").numbers("density", &[0.5, 0.7]).seed(3);
    let (manifest, inputs) = family.plan(builder, &["one", "two"]).unwrap();
    family.write_out(Ok((manifest.clone(), inputs)), &Options::default()).unwrap();
    let expected = fs::read(family.path("out").join("model.safetensors")).unwrap();

    let read = Manifest::from_json(&manifest.to_json().unwrap()).unwrap();
    assert_eq!(read, manifest);
    let opened = open(&["base", "one", "two"].map(|name| family.path(name))).unwrap();
    let sealed = read.with_fingerprints(opened.iter().map(AsRef::as_ref));
    let elsewhere = Inputs::open(&sealed).unwrap();
    fs::remove_dir_all(family.path("out")).unwrap();
    family.write_out(Ok((sealed.clone(), elsewhere)), &Options::default()).unwrap();
    assert_eq!(fs::read(family.path("out").join("model.safetensors")).unwrap(), expected);

    family.write("one", &[2.0, 2.0, 9.0], 11.0);
    let said = Inputs::open(&sealed).unwrap_err().to_string();
    assert!(said.contains("one") && said.contains("plan the merge anew"), "{said}");
    family.write_tensors("one", &[f32s("layers.0.w", &[2], &[1.0; 2])]);
    assert!(Inputs::open(&manifest).unwrap_err().to_string().contains("plan the merge anew"));
    assert!(Manifest::from_json("{}").unwrap_err().to_string().contains("manifest"));
    let mut silent = manifest.clone();
    silent.method.switches.clear();
    let said = Manifest::from_json(&silent.to_json().unwrap()).unwrap_err().to_string();
    assert!(said.contains("parameters.normalize"), "{said}");
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
    family.merge(task_arithmetic()).unwrap();
    let merged = Checkpoint::open(&family.path("out")).unwrap();
    let bytes = merged.bytes(merged.get("layers.0.w").unwrap());
    assert_eq!(f64::from_le_bytes(bytes.try_into().unwrap()), 1.0 + 3.0 * tiny);
}

#[test]
fn what_cannot_be_matched_is_refused_by_name() {
    let family = Family::new();
    let refusal = || family.refusal(family.plan(task_arithmetic(), &["one", "two"]));
    let inner = f32s("layers.0.w", &[3], &[1.0; 3]);
    let head = f32s("head.w", &[1], &[1.0]);

    family.write_tensors("one", std::slice::from_ref(&inner));
    assert!(refusal().contains("'head.w': is missing"));
    family.write_tensors("one", &[inner.clone(), head.clone(), f32s("new", &[1], &[1.0])]);
    assert!(refusal().contains("'new': is not in"));
    family.write_tensors("one", &[f32s("layers.0.w", &[1, 3], &[1.0; 3]), head.clone()]);
    assert!(refusal().contains("'layers.0.w': has shape [1, 3]"));
    let integers = ("head.w".to_owned(), "I32", vec![1], vec![0; 4]);
    family.write_tensors("one", &[inner, integers]);
    assert!(refusal().contains("'head.w': is I32"));
}

#[test]
fn other_dtypes_are_copied_where_all_agree() {
    let family = Family::new();
    let with =
        |byte: u8| [f32s("w", &[1], &[1.0]), ("mask".to_owned(), "U8", vec![2], vec![byte, 7])];
    for name in ["base", "one", "two"] {
        family.write_tensors(name, &with(3));
    }
    let refusal = || family.refusal(family.plan(task_arithmetic(), &["one", "two"]));
    family.merge(task_arithmetic()).unwrap();
    let merged = Checkpoint::open(&family.path("out")).unwrap();
    assert_eq!(merged.bytes(merged.get("mask").unwrap()), [3, 7]);
    fs::remove_dir_all(family.path("out")).unwrap();
    family.write_tensors("two", &with(4));
    assert!(refusal().contains("'mask': differs"));
}

#[test]
fn tied_and_computed_tensors_follow_stated_rules() {
    let family = Family::new();
    let inner = f32s("layers.0.w", &[3], &[2.0; 3]);
    let buffer = f32s("layers.0.rotary_emb.inv_freq", &[1], &[0.5]);
    family.write_tensors("one", &[inner, buffer]);
    let tied = |stand_in: &'static str, models: &[&str]| {
        family.plan_changed(task_arithmetic(), models, move |place, input| {
            if place == 0 { input.alias("head.w", stand_in) } else { input }
        })
    };
    let said = family.refusal(tied("layers.0.w", &["one", "two"]));
    assert!(said.contains("'head.w': has 3 rows and 1"), "{said}");

    family.write_tensors(
        "one",
        &[f32s("embed.w", &[1], &[12.0]), f32s("layers.0.w", &[3], &[1.0; 3])],
    );
    let base = [f32s("embed.w", &[1], &[9.0]), f32s("layers.0.w", &[3], &[0.0; 3])];
    family.write_tensors("base", &[base[0].clone(), base[1].clone(), f32s("head.w", &[1], &[9.0])]);
    family.write_out(tied("embed.w", &["one"]), &Options::default()).unwrap();
    assert_eq!(family.merged("head.w"), [12.0]);
}

#[test]
fn what_is_missing_is_explained() {
    let family = Family::new();
    let refusal = || family.refusal(family.plan(task_arithmetic(), &["one"]));
    family.write_tensors("one", &[f32s("_orig_mod.layers.0.w", &[3], &[1.0; 3])]);
    assert!(refusal().contains("start with '_orig_mod.'"));
    let quantised = ("layers.0.qweight".to_owned(), "I32", vec![1], vec![0; 4]);
    family.write_tensors("one", &[quantised, f32s("head.w", &[1], &[1.0])]);
    assert!(refusal().contains("is quantised"));
    family.write_tensors("one", &[f32s("layers.0.w", &[0], &[]), f32s("head.w", &[1], &[1.0])]);
    assert!(refusal().contains("is empty"));
}

#[test]
fn what_is_not_a_number_is_refused_unless_allowed() {
    let family = Family::new();
    let planned = || family.plan(task_arithmetic(), &["one", "two"]);
    family.write("one", &[2.0, f32::NAN, 1.0], 11.0);
    let said = family.refusal(planned());
    assert!(said.contains("'layers.0.w': holds NaN") && said.contains("one"), "{said}");
    let allowed = Options { allow_nan: true, ..Options::default() };
    let summary = family.write_out(planned(), &allowed).unwrap();
    let noted = |notes: &[String], what: &str, model: &str| {
        notes.iter().any(|note| note.contains(what) && note.contains(model))
    };
    assert!(noted(&summary.notes, "holds NaN, which is", "one"), "{:?}", summary.notes);
    let merged = family.merged("layers.0.w");
    assert!(merged[1].is_nan() && merged[0] == 2.0);

    fs::remove_dir_all(family.path("out")).unwrap();
    family.write("one", &[2.0, f32::INFINITY, 1.0], 11.0);
    let summary = family.merge(task_arithmetic()).unwrap();
    assert!(noted(&summary.notes, "infinite", "one"), "{:?}", summary.notes);
    fs::remove_dir_all(family.path("out")).unwrap();
    family.write("base", &[2.0, f32::INFINITY, 1.0], 11.0);
    let said = family.refusal(planned());
    assert!(said.contains("merge to NaN") && said.contains("base"), "{said}");
    let summary = family.write_out(planned(), &allowed).unwrap();
    assert!(noted(&summary.notes, "which are NaN in", "base"), "{:?}", summary.notes);

    let family = Family::new();
    family.write("one", &[60000.0, 1.0, 1.0], 11.0);
    let narrow = task_arithmetic().number("lambda", 2.0).out_dtype(Float::F16);
    assert!(family.refusal(family.plan(narrow, &["one", "two"])).contains("float16's range"));
    let double =
        |value: f64| -> Tensor { ("w".into(), "F64", vec![1], value.to_le_bytes().to_vec()) };
    let wide = Family::new();
    wide.write_tensors("base", &[double(1.0)]);
    wide.write_tensors("one", &[double(1e200)]);
    let narrow = task_arithmetic().out_dtype(Float::F32);
    assert!(wide.refusal(wide.plan(narrow, &["one"])).contains("float32's range"));
    let large = || task_arithmetic().number("lambda", f64::from(f32::MAX));
    let summary = family.write_out(family.plan(large(), &["one", "two"]), &allowed).unwrap();
    assert!(noted(&summary.notes, "of the merged model holds", "layers.0.w"));
    fs::remove_dir_all(family.path("out")).unwrap();
    assert!(family.refusal(family.plan(large(), &["one", "two"])).contains("overflows"));
}

#[test]
fn a_cancelled_merge_leaves_nothing() {
    let family = Family::new();
    let monitor = Monitor::new();
    monitor.cancel();
    let (manifest, inputs) = family.plan(Builder::new("ties"), &["one", "two"]).unwrap();
    let out = family.path("out");
    let result = execute(&manifest, &inputs, &out, &[], &[], &Options::default(), &monitor);
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
        Sidecar::Card { name: "card.md".into(), content: "# A model\n".into() },
    ];
    let notes = ["known before".to_owned()];
    let (manifest, inputs) = family.plan(task_arithmetic(), &["one", "two"]).unwrap();
    let (out, options) = (family.path("out"), Options::default());
    execute(&manifest, &inputs, &out, &sidecars, &notes, &options, &Monitor::new()).unwrap();
    assert_eq!(fs::read_to_string(out.join("README.md")).unwrap(), "hello");
    let card = fs::read_to_string(out.join("card.md")).unwrap();
    assert_eq!(card, "# A model\n\n## Notes\n\n- known before\n");
    let listing = fs::read_to_string(out.join("sensmerge_output.json")).unwrap();
    assert!(listing.contains("known before"), "{listing}");
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
