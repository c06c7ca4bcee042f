//! Tensors that are not computed: those that must be the same everywhere, and are copied.

use rayon::prelude::*;

use super::Run;
use crate::checkpoint::output::ShardWriter;
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
pub(super) fn write(run: &Run, writers: &[ShardWriter]) -> Result<()> {
    run.plan.steps.par_iter().try_for_each(|step| {
        let Content::Copy((checkpoint, tensor)) = &step.content else {
            return Ok(());
        };
        run.monitor.check()?;
        writers[step.shard].write_at(step.bytes.start, checkpoint.bytes(tensor))
    })
}
