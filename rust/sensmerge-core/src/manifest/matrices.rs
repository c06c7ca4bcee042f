//! Notes on merges of whole matrices.

use super::{Manifest, Merge, Output, Source};
use crate::dtype::Float;
use crate::program::function::Called;
use crate::program::matrix::{self, CombineMatrices};

/// What to tell of a merge that takes matrices as wholes: how much memory the most demanding takes, and
/// what the method says of adapters, if some experts are.
pub(super) fn notes(built: &Manifest, combine: &dyn CombineMatrices) -> Vec<String> {
    let mut notes = Vec::new();
    let method = &built.method.name;
    let needs = built.merges().map(|(output, merge)| {
        (matrix::bytes(combine, &merge.subject(output, built.seed)), output)
    });
    let largest = needs.max_by_key(|(bytes, _)| *bytes).filter(|(bytes, _)| *bytes > 1_000_000);
    if let Some((bytes, output)) = largest {
        notes.push(format!(
            "{method} merges whole matrices, each on one thread: one of '{}' takes {:.1} MB of memory, \
             more than any other",
            output.name,
            bytes as f64 / 1e6
        ));
    }
    let adapted = |(_, merge): (&Output, &Merge)| merge.experts.iter().any(Source::is_adapted);
    if built.merges().any(adapted) {
        notes.extend(combine.on_adapters().map(|words| format!("{method}: {words}")));
    }
    notes
}

/// How much memory the most demanding tensor takes where a function merges whole tensors; `None` where
/// it is little.
pub(super) fn note_on_tensors(built: &Manifest, called: &Called) -> Option<String> {
    let needs = built.merges().map(|(output, merge)| {
        let mut sources = merge.base.iter().chain(&merge.experts);
        let double = sources.any(|source| source.dtype() == Some(Float::F64));
        let entry_bytes = if double { size_of::<f64>() } else { size_of::<f32>() };
        (called.bytes(&merge.subject(output, built.seed), entry_bytes), output)
    });
    let (bytes, output) = needs.max_by_key(|(bytes, _)| *bytes)?;
    (bytes > 1_000_000).then(|| {
        format!(
            "{} merges whole tensors: '{}' takes {:.1} MB of memory besides what the function itself \
             computes with, more than any other",
            built.method.name,
            output.name,
            bytes as f64 / 1e6
        )
    })
}
