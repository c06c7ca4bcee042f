//! Tensors that are not computed: those that must be the same everywhere, and are copied.

use rayon::prelude::*;

use super::Run;
use super::destination::{Destination, Slot};
use crate::error::{Error, Result};
use crate::plan::Content;

/// Refuse the merge where tensors that must hold the same bytes do not.
pub(super) fn verify(run: &Run) -> Result<()> {
    run.plan.identical.par_iter().try_for_each(|[first, second]| {
        run.monitor.check()?;
        if first.bytes() == second.bytes() {
            return Ok(());
        }
        Err(Error::tensor(
            second.checkpoint.path(),
            &second.tensor.name,
            format!(
                "differs from '{}' in {}; {} tensors are not merged, and can be copied only where \
                 all models agree",
                first.tensor.name,
                first.checkpoint.path().display(),
                first.tensor.dtype.name()
            ),
        ))
    })
}

/// Write the tensors that are copied.
pub(super) fn write(run: &Run, destination: &mut Destination) -> Result<()> {
    let mut copies = Vec::new();
    for (place, step) in run.plan.steps.iter().enumerate() {
        if let Content::Copy(located) = &step.content {
            let bytes = located.bytes();
            copies.extend(
                destination.slots(place, step, bytes.len()).pop().map(|slot| (slot, bytes)),
            );
        }
    }
    copies.into_par_iter().try_for_each(|(slot, bytes): (Slot, &[u8])| {
        run.monitor.check()?;
        slot.put(bytes)
    })
}
