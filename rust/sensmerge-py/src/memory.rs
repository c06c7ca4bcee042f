use std::collections::BTreeMap;
use std::ops::Range;

use pyo3::prelude::*;
use sensmerge_core::engine::{DEFAULT_CHUNK_BYTES, Inputs, Monitor, Options, execute_into};

use crate::buffers::BytesMut;
use crate::checkpoint::Checkpoint;
use crate::door::enter;
use crate::error::bad_input;
use crate::manifest::{Manifest, opened};

/// Carry a manifest out and merge into memory.
///
/// Args:
///     manifest: The merge.
///     models: The manifest's models, in their order.
///     outputs: A contiguous, writable uint8 view for every tensor of the merged model, by name.
///     threads: Threads to use; all cores by default.
///     chunk_bytes: Bytes that a thread works on at a time; does not change the output.
///     allow_nan: Write NaN and infinite values instead of refusing them.
///
/// Returns:
///     Notes for the user, on the rules that were applied and on the inputs.
///
/// Raises:
///     InputError: The checkpoints cannot be merged as asked, or an output is missing, of another
///         size, read-only, or overlaps another or an input.
///     KeyboardInterrupt: Ctrl-C was pressed; some outputs are written, others are not.
#[pyfunction]
#[pyo3(signature = (
    manifest, models, outputs: "collections.abc.Mapping[str, numpy.typing.NDArray[numpy.uint8]]", *,
    threads = None, chunk_bytes = None, allow_nan = false
))]
pub(crate) fn merge_into(
    py: Python<'_>,
    manifest: PyRef<'_, Manifest>,
    models: Vec<PyRef<'_, Checkpoint>>,
    outputs: BTreeMap<String, Bound<'_, PyAny>>,
    threads: Option<usize>,
    chunk_bytes: Option<usize>,
    allow_nan: bool,
) -> PyResult<Vec<String>> {
    let manifest = manifest.inner();
    let mut buffers = writable(&outputs, models.iter().flat_map(|model| model.ranges()))?;
    let checkpoints = opened(&models);
    let chunk_bytes = chunk_bytes.unwrap_or(DEFAULT_CHUNK_BYTES);
    let options = Options { threads, chunk_bytes, allow_nan, ..Options::default() };
    let slices = slices(&mut buffers);
    let monitor = Monitor::new();
    enter(py, &monitor, None, || {
        let inputs = Inputs::of(&manifest, checkpoints)?;
        execute_into(&manifest, &inputs, slices, &options, &monitor)
    })
}

/// The outputs' memory by name. Outputs that share memory with each other or with an input are refused.
pub(crate) fn writable<'i>(
    outputs: &BTreeMap<String, Bound<'_, PyAny>>,
    inputs: impl Iterator<Item = &'i Range<usize>>,
) -> PyResult<BTreeMap<String, BytesMut>> {
    let buffers = outputs
        .iter()
        .map(|(name, object)| Ok((name.clone(), BytesMut::of(name, object)?)))
        .collect::<PyResult<BTreeMap<_, _>>>()?;
    disjoint(&buffers, inputs)?;
    Ok(buffers)
}

/// The memory of outputs that [`writable`] has checked.
pub(crate) fn slices(buffers: &mut BTreeMap<String, BytesMut>) -> BTreeMap<String, &mut [u8]> {
    buffers.iter_mut().map(|(name, bytes)| (name.clone(), bytes.as_mut_slice())).collect()
}

/// Refuse outputs that share memory with each other or with an input.
fn disjoint<'i>(
    outputs: &BTreeMap<String, BytesMut>,
    inputs: impl Iterator<Item = &'i Range<usize>>,
) -> PyResult<()> {
    let written = outputs.iter().map(|(name, bytes)| (bytes.range(), Some(name.as_str())));
    let read = inputs.map(|range| (range.clone(), None));
    let mut ranges: Vec<(Range<usize>, Option<&str>)> =
        written.chain(read).filter(|(range, _)| !range.is_empty()).collect();
    ranges.sort_by_key(|(range, _)| range.start);
    // The furthest ends of the outputs and of the inputs seen so far, in the order of addresses.
    let (mut written_end, mut read_end) = (0, 0);
    for (range, output) in ranges {
        let (overlaps_output, overlaps_input) = (range.start < written_end, range.start < read_end);
        if let Some(name) = output {
            if overlaps_output || overlaps_input {
                let other = if overlaps_output { "another output" } else { "an input" };
                return Err(bad_input(format!(
                    "{name}: its memory overlaps {other}; merge into memory of its own"
                )));
            }
            written_end = written_end.max(range.end);
        } else {
            if overlaps_output {
                return Err(bad_input(
                    "an output's memory overlaps an input; merge into memory of its own".to_owned(),
                ));
            }
            read_end = read_end.max(range.end);
        }
    }
    Ok(())
}
