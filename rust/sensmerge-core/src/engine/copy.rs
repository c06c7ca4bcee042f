//! Tensors that are copied: they are not computed with, and must be the same in all models.

use rayon::prelude::*;

use super::Job;
use super::destination::{Destination, Slot};
use crate::error::{Error, Result};
use crate::manifest::Content;

/// Refuse the merge if tensors that must hold the same bytes differ.
pub(super) fn verify(job: &Job) -> Result<()> {
    job.manifest.identical.par_iter().try_for_each(|[first, second]| {
        job.monitor.check()?;
        if job.inputs.bytes(first)? == job.inputs.bytes(second)? {
            return Ok(());
        }
        Err(Error::tensor(
            job.inputs.checkpoint(second)?.path(),
            &second.name,
            format!(
                "differs from '{}' in {}; {} tensors are not merged, and can be copied only where \
                 all models agree",
                first.name,
                job.inputs.checkpoint(first)?.path().display(),
                first.dtype.name()
            ),
        ))
    })
}

/// Write the tensors that are copied.
pub(super) fn write(job: &Job, destination: &mut Destination) -> Result<()> {
    let mut copies = Vec::new();
    for (place, output) in job.manifest.tensors.iter().enumerate() {
        if let Content::Copy(stored) = &output.content {
            let bytes = job.inputs.bytes(stored)?;
            copies.extend(destination.slots(place, 0, bytes.len()).pop().map(|slot| (slot, bytes)));
        }
    }
    copies.into_par_iter().try_for_each(|(slot, bytes): (Slot, &[u8])| {
        job.monitor.check()?;
        slot.put(bytes)
    })
}
