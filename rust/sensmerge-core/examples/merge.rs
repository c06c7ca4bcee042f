//! A whole merge from Rust alone: `cargo run --release --example merge -- OUT BASE EXPERT...`
//!
//! Task arithmetic over any number of experts, with a weight of 1.2 for the first decoder block
//! and 1 elsewhere, as Sens-Merging would set them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use sensmerge_core::execute::{Monitor, Options, execute};
use sensmerge_core::method::{MethodName, Semantics};
use sensmerge_core::plan::{Inputs, Model, Plan, Recipe, Setting};

const MAX_SHARD_BYTES: u64 = 5_000_000_000;

fn main() -> ExitCode {
    let mut paths = std::env::args().skip(1).map(PathBuf::from);
    let (Some(output), Some(base)) = (paths.next(), paths.next()) else {
        eprintln!("usage: merge OUT BASE EXPERT...");
        return ExitCode::from(2);
    };
    match merge(&output, base, paths.collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn merge(output: &Path, base: PathBuf, experts: Vec<PathBuf>) -> sensmerge_core::Result<()> {
    let share = 1.0 / experts.len().max(1) as f64;
    let mut weight = Setting::uniform(1.0);
    weight.layers.insert("model.layers.0".into(), 1.2);
    let recipe = Recipe {
        method: MethodName::TaskArithmetic,
        semantics: Semantics::Mergekit,
        base: Some(base),
        models: experts
            .into_iter()
            .map(|path| Model { weight: weight.clone(), ..Model::new(path) })
            .collect(),
        lambda: Setting::uniform(share),
        normalize: None,
        rescale: None,
        seed: 0,
        out_dtype: None,
    };
    let inputs = Inputs::open(&recipe)?;
    let plan = Plan::new(&recipe, &inputs, MAX_SHARD_BYTES)?;
    let summary = execute(&plan, output, &[], &Options::default(), &Monitor::new())?;
    println!("{} tensors in {:.1} s", summary.tensors, summary.seconds);
    Ok(())
}
