//! The core as its users see it: files in, files out, no interpreter.
#![expect(clippy::unwrap_used, reason = "a test that cannot write its input has failed")]

mod adapters;
mod chunks;
mod damping;
mod files;
mod hostile;
mod matrices;
mod memory;
mod merging;
mod mutation;
mod output;
mod prepared;
mod reader;
mod rows;
mod shards;
mod units;
