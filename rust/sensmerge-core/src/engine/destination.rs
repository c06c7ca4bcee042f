//! Where merged bytes go: files of an output folder, or memory that the caller holds.

use std::collections::BTreeMap;

use crate::checkpoint::layout::ShardLayout;
use crate::checkpoint::output::ShardWriter;
use crate::error::{Error, Result};
use crate::manifest::{Manifest, Output};

/// The outputs of a merge.
pub(super) enum Destination<'o> {
    /// One writer a shard, and for every tensor of the manifest its shard and the place of its
    /// first byte.
    Files(&'o [ShardWriter], Vec<(usize, u64, usize)>),
    /// The bytes of every tensor of the manifest, in its order; each is taken once.
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
    /// The files of an output folder, whose layout has the manifest's order.
    pub(super) fn files(writers: &'o [ShardWriter], shards: &[ShardLayout]) -> Self {
        let places = shards.iter().enumerate().flat_map(|(shard, layout)| {
            layout
                .tensors
                .iter()
                .map(move |(spec, offset)| (shard, *offset, spec.nbytes() as usize))
        });
        Self::Files(writers, places.collect())
    }

    /// The caller's buffers, by the name of their tensor.
    ///
    /// # Errors
    /// [`Error::Setting`] where a tensor has no buffer or one of another size, or a buffer no tensor.
    pub(super) fn memory(
        manifest: &Manifest,
        mut buffers: BTreeMap<String, &'o mut [u8]>,
    ) -> Result<Self> {
        let buffer = |output: &Output| {
            let buffer = buffers
                .remove(&output.name)
                .ok_or_else(|| Error::setting(&output.name, "the output has no buffer for it"))?;
            let (needed, found) = (output.nbytes(), buffer.len());
            if needed == found {
                return Ok(Some(buffer));
            }
            let reason = format!("its output buffer has {found} bytes where it needs {needed}");
            Err(Error::setting(&output.name, reason))
        };
        let taken = manifest.tensors.iter().map(buffer).collect::<Result<_>>()?;
        match buffers.into_keys().next() {
            None => Ok(Self::Memory(taken)),
            Some(name) => Err(Error::setting(name, "is no tensor of the merged model")),
        }
    }

    /// Where the pieces of the tensor at `place` go, of `size` bytes each but for the last. To be
    /// asked for once a tensor.
    pub(super) fn slots(&mut self, place: usize, size: usize) -> Vec<Slot<'o>> {
        let size = size.max(1);
        match self {
            Self::Files(writers, places) => {
                let (shard, start, bytes) = places[place];
                let writer = &writers[shard];
                let offsets = (0..bytes).step_by(size);
                offsets.map(|offset| Slot::File { writer, offset: start + offset as u64 }).collect()
            }
            Self::Memory(buffers) => {
                let bytes = buffers[place].take().unwrap_or_default();
                bytes.chunks_mut(size).map(Slot::Memory).collect()
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
