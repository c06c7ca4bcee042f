//! Where merged bytes go: files of an output folder, or memory that the caller holds.

use std::collections::BTreeMap;

use crate::checkpoint::output::ShardWriter;
use crate::error::{Error, Result};
use crate::plan::{Plan, Step};

/// The outputs of a merge.
pub(super) enum Destination<'o> {
    /// One writer a shard.
    Files(&'o [ShardWriter]),
    /// The bytes of every step, by its place in the plan; each is taken once.
    Memory(Vec<Option<&'o mut [u8]>>),
}

/// Where one piece of a tensor goes.
pub(super) enum Slot<'o> {
    /// To a place in a file.
    File {
        /// The file.
        writer: &'o ShardWriter,
        /// The place of the piece's first byte.
        offset: u64,
    },
    /// Straight into the caller's memory.
    Memory(&'o mut [u8]),
}

impl<'o> Destination<'o> {
    /// The caller's buffers, by the name of their tensor.
    ///
    /// # Errors
    /// [`Error::Setting`] where a tensor has no buffer or one of another size, or a buffer no tensor.
    pub(super) fn memory(plan: &Plan, mut buffers: BTreeMap<String, &'o mut [u8]>) -> Result<Self> {
        let buffer = |step: &Step| {
            let buffer = buffers
                .remove(&step.name)
                .ok_or_else(|| Error::setting(&step.name, "the output has no buffer for it"))?;
            let (needed, found) = (step.bytes.end - step.bytes.start, buffer.len() as u64);
            if needed == found {
                return Ok(Some(buffer));
            }
            let reason = format!("its output buffer has {found} bytes where it needs {needed}");
            Err(Error::setting(&step.name, reason))
        };
        let taken = plan.steps.iter().map(buffer).collect::<Result<_>>()?;
        match buffers.into_keys().next() {
            None => Ok(Self::Memory(taken)),
            Some(name) => Err(Error::setting(name, "is no tensor of the merged model")),
        }
    }

    /// Where the pieces of the step at `place` go, of `size` bytes each but for the last. To be
    /// asked for once a step.
    pub(super) fn slots(&mut self, place: usize, step: &Step, size: usize) -> Vec<Slot<'o>> {
        match self {
            Self::Files(writers) => {
                let writer = &writers[step.shard];
                let offsets = step.bytes.clone().step_by(size.max(1));
                offsets.map(|offset| Slot::File { writer, offset }).collect()
            }
            Self::Memory(buffers) => {
                let bytes = buffers[place].take().unwrap_or_default();
                bytes.chunks_mut(size.max(1)).map(Slot::Memory).collect()
            }
        }
    }
}

impl Slot<'_> {
    /// Store the whole piece at once.
    pub(super) fn put(self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::File { writer, offset } => writer.write_at(offset, bytes),
            Self::Memory(memory) => {
                memory.copy_from_slice(bytes);
                Ok(())
            }
        }
    }
}
