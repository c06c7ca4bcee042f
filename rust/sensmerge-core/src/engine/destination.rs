//! The destination of merged bytes: files of an output folder, or memory that the caller holds.

use std::collections::BTreeMap;

use crate::checkpoint::layout::{ShardLayout, TensorSpec};
use crate::checkpoint::output::ShardWriter;
use crate::error::{Error, Result};
use crate::manifest::{Manifest, Output};

/// The outputs of a merge.
pub(super) struct Destination<'o> {
    places: Places<'o>,
    /// For every tensor of the manifest, the index of the first tensor that it is written as.
    firsts: Vec<usize>,
}

/// The places of the tensors that are written, in the order of [`Manifest::specs`].
enum Places<'o> {
    /// One writer per shard, none for those that are whole already, and for every tensor: its shard, the offset of its first byte in the file,
    /// and its size in bytes.
    Files(&'o [Option<ShardWriter>], Vec<(usize, u64, usize)>),
    /// The buffer of every tensor; `None` once it is taken.
    Memory(Vec<Option<&'o mut [u8]>>),
}

/// The destination of one piece of a tensor.
pub(super) enum Slot<'o> {
    /// A range of a file.
    File {
        /// The file.
        writer: &'o ShardWriter,
        /// The offset of the piece's first byte.
        offset: u64,
    },
    /// The caller's memory.
    Memory(&'o mut [u8]),
    /// A file that is whole already.
    Finished,
}

impl<'o> Destination<'o> {
    /// The files of an output folder. The layout lists the manifest's tensors in their order.
    pub(super) fn files(
        manifest: &Manifest,
        writers: &'o [Option<ShardWriter>],
        shards: &[ShardLayout],
    ) -> Self {
        let places = shards.iter().enumerate().flat_map(|(shard, layout)| {
            layout
                .tensors
                .iter()
                .map(move |(spec, offset)| (shard, *offset, spec.nbytes() as usize))
        });
        Self { places: Places::Files(writers, places.collect()), firsts: firsts(manifest) }
    }

    /// The caller's buffers, by the names of the tensors that are written.
    ///
    /// # Errors
    /// [`Error::Setting`] for a tensor without a buffer or with one of another size, and for a buffer
    /// without a tensor.
    pub(super) fn memory(
        manifest: &Manifest,
        mut buffers: BTreeMap<String, &'o mut [u8]>,
    ) -> Result<Self> {
        let buffer = |spec: TensorSpec| {
            let buffer = buffers
                .remove(&spec.name)
                .ok_or_else(|| Error::setting(&spec.name, "the output has no buffer for it"))?;
            let (needed, found) = (spec.nbytes() as usize, buffer.len());
            if needed == found {
                return Ok(Some(buffer));
            }
            let reason = format!("its output buffer has {found} bytes where it needs {needed}");
            Err(Error::setting(&spec.name, reason))
        };
        let taken = manifest.specs().into_iter().map(buffer).collect::<Result<_>>()?;
        match buffers.into_keys().next() {
            None => Ok(Self { places: Places::Memory(taken), firsts: firsts(manifest) }),
            Some(name) => Err(Error::setting(name, "is not a tensor of the merged model")),
        }
    }

    /// Whether the tensor at index `place` of the manifest lies in files that are whole already.
    pub(super) fn is_finished(&self, place: usize) -> bool {
        let Places::Files(writers, places) = &self.places else { return false };
        let end = self.firsts.get(place + 1).copied().unwrap_or(places.len());
        places[self.firsts[place]..end].iter().all(|(shard, ..)| writers[*shard].is_none())
    }

    /// The destinations of the pieces, of `size` bytes each, of the `part`-th tensor that the tensor at
    /// index `place` is written as; the last piece may be shorter. May be called once for each: memory
    /// is handed out then.
    pub(super) fn slots(&mut self, place: usize, part: usize, size: usize) -> Vec<Slot<'o>> {
        let (size, place) = (size.max(1), self.firsts[place] + part);
        match &mut self.places {
            Places::Files(writers, places) => {
                let (shard, start, bytes) = places[place];
                let slot = |offset| match &writers[shard] {
                    Some(writer) => Slot::File { writer, offset: start + offset as u64 },
                    None => Slot::Finished,
                };
                (0..bytes).step_by(size).map(slot).collect()
            }
            Places::Memory(buffers) => {
                let bytes = buffers[place].take().unwrap_or_default();
                bytes.chunks_mut(size).map(Slot::Memory).collect()
            }
        }
    }
}

fn firsts(manifest: &Manifest) -> Vec<usize> {
    let mut next = 0;
    let first = |output: &Output| {
        next += output.specs().len();
        next - output.specs().len()
    };
    manifest.tensors.iter().map(first).collect()
}

impl Slot<'_> {
    /// Store the whole piece.
    pub(super) fn put(self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::File { writer, offset } => writer.write_at(offset, bytes),
            Self::Memory(memory) => {
                memory.copy_from_slice(bytes);
                Ok(())
            }
            Self::Finished => Ok(()),
        }
    }
}
