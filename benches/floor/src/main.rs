//! The floor to which merges are compared: θ₀ + Σ w δ in f32, on all threads, through the page cache,
//! without planning or checking anything. Every model must be one safetensors file of bfloat16
//! tensors, all with the same header.
//!
//! `sensmerge-floor [--sync] [--threads N] (--out FILE | --memory) BASE EXPERT...` prints seconds;
//! with `--memory`, without the time for mapping the files and allocating the output.
#![expect(unsafe_code, reason = "files are mapped")]
#![expect(clippy::unwrap_used, reason = "nothing is checked")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use memmap2::Mmap;

/// Entries that a thread takes at a time.
const CHUNK: usize = 1 << 18;

fn main() {
    let start = Instant::now();
    let (mut sync, mut out, mut models) = (false, None, Vec::new());
    let mut threads = std::thread::available_parallelism().unwrap().get();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--sync" => sync = true,
            "--memory" => out = None,
            "--threads" => threads = arguments.next().unwrap().parse().unwrap(),
            "--out" => out = arguments.next(),
            _ => models.push(argument),
        }
    }
    // SAFETY: the benchmark changes no input while this runs.
    let map = |path: &String| unsafe { Mmap::map(&File::open(path).unwrap()) }.unwrap();
    let maps: Vec<Mmap> = models.iter().map(map).collect();
    let header = 8 + u64::from_le_bytes(maps[0][..8].try_into().unwrap()) as usize;
    let inputs: Vec<&[u8]> = maps.iter().map(|map| &map[header..]).collect();
    let weights = vec![1.0 / (models.len() - 1) as f32; models.len() - 1];

    let chunks = inputs[0].len().div_ceil(2 * CHUNK);
    let next = AtomicUsize::new(0);
    if let Some(path) = out {
        let file = File::create_new(path).unwrap();
        file.write_all_at(&maps[0][..header], 0).unwrap();
        let work = || {
            let (mut delta, mut bytes) = (vec![0.0; CHUNK], vec![0; 2 * CHUNK]);
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                if place >= chunks {
                    break;
                }
                let from = place * 2 * CHUNK;
                let length = (inputs[0].len() - from).min(2 * CHUNK);
                merge(&inputs, from, &weights, &mut delta, &mut bytes[..length]);
                file.write_all_at(&bytes[..length], (header + from) as u64).unwrap();
            }
        };
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
        if sync {
            file.sync_all().unwrap();
        }
    } else {
        let mut merged = vec![1_u8; inputs[0].len()];
        let start = Instant::now();
        let slots: Vec<_> = merged.chunks_mut(2 * CHUNK).map(std::sync::Mutex::new).collect();
        let work = || {
            let mut delta = vec![0.0; CHUNK];
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let Some(slot) = slots.get(place) else { break };
                merge(&inputs, place * 2 * CHUNK, &weights, &mut delta, &mut slot.lock().unwrap());
            }
        };
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
        println!("{:.4}", start.elapsed().as_secs_f64());
        return;
    }
    println!("{:.4}", start.elapsed().as_secs_f64());
}

/// Merge one chunk, in blocks that stay in the first-level cache.
fn merge(inputs: &[&[u8]], from: usize, weights: &[f32], delta: &mut [f32], out: &mut [u8]) {
    const BLOCK: usize = 1024;
    for start in (0..out.len()).step_by(2 * BLOCK) {
        let end = out.len().min(start + 2 * BLOCK);
        let entries = |model: usize| inputs[model][from + start..from + end].as_chunks::<2>().0;
        let next = (from + end)..inputs[0].len().min(from + end + 2 * BLOCK);
        for input in inputs {
            prefetch(&input[next.clone()]);
        }
        let base = entries(0);
        let sum = &mut delta[..base.len()];
        sum.fill(0.0);
        for (model, &weight) in weights.iter().enumerate() {
            for ((sum, expert), base) in sum.iter_mut().zip(entries(model + 1)).zip(base) {
                *sum += weight * (widen(*expert) - widen(*base));
            }
        }
        let bytes = out[start..end].as_chunks_mut::<2>().0;
        for ((bytes, base), sum) in bytes.iter_mut().zip(base).zip(sum) {
            let bits = (widen(*base) + *sum).to_bits();
            *bytes = (((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16).to_le_bytes();
        }
    }
}

/// Ask the processor to load memory into its caches, while the block before it is computed.
fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

fn widen(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}
