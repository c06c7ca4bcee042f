//! A merge in Rust: `cargo run --release --example merge -- OUT BASE EXPERT...`
//!
//! Task arithmetic over any number of experts, with a weight of 1.2 in the first decoder block and 1
//! elsewhere, as an example of weights that differ by layer.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use sensmerge_core::Result;
use sensmerge_core::checkpoint::Checkpoint;
use sensmerge_core::engine::{Inputs, Monitor, Options, execute};
use sensmerge_core::manifest::{Builder, Number, Numbers, View};

fn main() -> ExitCode {
    let mut paths = std::env::args().skip(1).map(PathBuf::from);
    let (Some(output), Some(base)) = (paths.next(), paths.next()) else {
        eprintln!("usage: merge OUT BASE EXPERT...");
        return ExitCode::from(2);
    };
    match merge(&output, &base, &paths.collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn merge(output: &Path, base: &Path, experts: &[PathBuf]) -> Result<()> {
    let open = |path: &Path| Checkpoint::open(path).map(Arc::new);
    let base = open(base)?;
    let mut checkpoints = vec![Arc::clone(&base)];
    let mut builder = Builder::new("task_arithmetic")
        .number("lambda", 1.0 / experts.len().max(1) as f64)
        .base(View::new(Arc::clone(&base)));
    for path in experts {
        let expert = open(path)?;
        builder = builder.model(View::new(Arc::clone(&expert)));
        checkpoints.push(expert);
    }
    for tensor in base.tensors().filter(|tensor| tensor.name.contains("layers.0.")) {
        let weights = Number::Models(vec![1.2; experts.len()]);
        let numbers = Numbers::from([("weight".to_owned(), weights)]);
        builder = builder.tensor(&tensor.name, numbers);
    }
    let manifest = builder.build()?;
    let inputs = Inputs::of(&manifest, checkpoints)?;
    let summary =
        execute(&manifest, &inputs, output, &[], &[], &Options::default(), &Monitor::new())?;
    println!("{} tensors in {:.1} s", summary.tensors, summary.seconds);
    Ok(())
}
