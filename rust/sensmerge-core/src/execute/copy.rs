//! Tensors that are not computed: those that must be the same everywhere, and are copied.

use rayon::prelude::*;

use super::Run;
use super::destination::{Destination, Slot};
use crate::error::{Error, Result};
use crate::plan::Content;

/// Refuse the merge where tensors that must hold the same bytes do not.
pub(super) fn verify(run: &Run) -> Result<()> {
    run.plan.identical.par_iter().try_for_each(|[(first, one), (second, other)]| {
        run.monitor.check()?;
        if first.bytes(one) == second.bytes(other) {
            return Ok(());
        }
        Err(Error::tensor(
            second.path(),
            &other.name,
            format!(
                "differs from '{}' in {}; {} tensors are not merged, and can be copied only where \
                 all models agree",
                one.name,
                first.path().display(),
                one.dtype.name()
            ),
        ))
    })
}

/// Write the tensors that are copied.
pub(super) fn write(run: &Run, destination: &mut Destination) -> Result<()> {
    let mut copies = Vec::new();
    for (place, step) in run.plan.steps.iter().enumerate() {
        if let Content::Copy((checkpoint, tensor)) = &step.content {
            let bytes = checkpoint.bytes(tensor);
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
