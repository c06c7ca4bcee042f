//! Notes on merges of whole matrices.

use super::{Manifest, Merge, Output, Source};
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
