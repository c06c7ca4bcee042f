//! Files opened for reading, and mapped into memory: every file that the core reads is opened here.
//!
//! Files of a model's folder are named by other files, which are not trusted: each has to be a regular
//! file, and a link must not lead out of the folder. One that the caller names may lie anywhere.
//!
//! Where a mapped file has been truncated, or its disk fails, reading its pages raises SIGBUS, which
//! would end the process without a word. The handler here puts zeros in the place of the pages of our
//! own mappings and marks them as torn, so that the merge ends with an error that names the file
//! (`stamp.rs`). Every other SIGBUS goes where it would have gone.
#![expect(unsafe_code, reason = "a file is mapped to be read without copying it")]

use std::fs::File;
use std::io::Read;
use std::path::Path;

use memmap2::Mmap;

use super::origin;
use super::stamp::Stamp;
use crate::error::{Error, Result};

/// A mapped file.
pub(super) struct Mapped {
    map: Mmap,
    #[cfg(unix)]
    place: Option<usize>,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Mapped {
    /// Whether pages of it could not be read, and were taken for zeros.
    pub(super) fn is_torn(&self) -> bool {
        #[cfg(unix)]
        let torn = self.place.is_some_and(torn::is_torn);
        #[cfg(not(unix))]
        let torn = false;
        torn
    }
}

#[cfg(unix)]
impl Drop for Mapped {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            torn::forget(place);
        }
    }
}

/// Map a regular file that the caller named, read-only, and take its stamp. Links are followed.
pub(super) fn map_named(path: &Path) -> Result<(Mapped, Stamp)> {
    let file = open(path)?;
    let stamp = Stamp::of(&file.metadata().map_err(Error::io(path))?);
    // SAFETY: nothing is written through the map. The operating system cannot keep other processes
    // from changing or truncating the file meanwhile: what was read is thrown away if its stamp has
    // changed, and pages that are gone read as zeros.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
    #[cfg(unix)]
    let place = torn::watch(&map);
    let mapped = Mapped {
        map,
        #[cfg(unix)]
        place,
    };
    Ok((mapped, stamp))
}

/// Map a regular file of a model's folder, read-only.
pub(super) fn map(path: &Path) -> Result<(Mapped, Stamp)> {
    check_own(path)?;
    map_named(path)
}

/// Map a regular file of a model's folder that has at most so many bytes.
pub(super) fn map_small(path: &Path, most: u64) -> Result<Mapped> {
    let (map, _) = map(path)?;
    check_size(path, map.as_ref().len() as u64, most)?;
    Ok(map)
}

/// Read a regular file of a model's folder that has at most so many bytes.
pub(super) fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    check_own(path)?;
    let file = open(path)?;
    let size = file.metadata().map_err(Error::io(path))?.len();
    check_size(path, size, most)?;
    let mut bytes = Vec::new();
    file.take(size).read_to_end(&mut bytes).map_err(Error::io(path))?;
    Ok(bytes)
}

fn check_size(path: &Path, size: u64, most: u64) -> Result<()> {
    if size <= most {
        return Ok(());
    }
    let reason = format!("has {size} bytes, and at most {most} are read of such a file");
    Err(Error::file(path, reason))
}

/// Refuse a link that leads out of the folder that it is in.
///
/// In the Hub's cache, files of a folder are links to its blobs.
fn check_own(path: &Path) -> Result<()> {
    if !std::fs::symlink_metadata(path).map_err(Error::io(path))?.is_symlink() {
        return Ok(());
    }
    let target = path.canonicalize().map_err(Error::io(path))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let home = folder.canonicalize().map_err(Error::io(folder))?;
    let blobs = origin::blobs(&home);
    if target.starts_with(&home) || blobs.is_some_and(|blobs| target.starts_with(blobs)) {
        return Ok(());
    }
    let reason = "is a link that leads outside the model's folder; put the file itself there, or \
                  name the folder that it lies in";
    Err(Error::file(path, reason))
}

fn open(path: &Path) -> Result<File> {
    // Checked before opening: opening a pipe would wait for its writer.
    let kind = std::fs::metadata(path).map_err(Error::io(path))?;
    if !kind.is_file() {
        return Err(Error::file(path, "is not a regular file"));
    }
    File::open(path).map_err(Error::io(path))
}

/// The mappings that are watched, and the handler.
#[cfg(unix)]
mod torn {
    use std::mem::MaybeUninit;
    use std::ptr;
    use std::sync::Mutex;
    use std::sync::PoisonError;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// One mapping. The handler may take no lock, so that mappings lie at fixed places.
    struct Watched {
        /// Address of the first byte; 0 for a place that is free.
        start: AtomicUsize,
        /// Address after the last page.
        end: AtomicUsize,
        torn: AtomicBool,
    }

    /// Mappings that can be watched at a time; those beyond are not.
    const MOST: usize = 1 << 14;

    static WATCHED: [Watched; MOST] = [const {
        Watched {
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            torn: AtomicBool::new(false),
        }
    }; MOST];
    static PAGE: AtomicUsize = AtomicUsize::new(4096);
    /// Whether the handler has passed a signal on.
    static PASSED_ON: AtomicBool = AtomicBool::new(false);
    static INSTALLING: Mutex<()> = Mutex::new(());
    static BEFORE: Before = Before(std::cell::UnsafeCell::new(MaybeUninit::uninit()));

    /// What handled the signal before.
    struct Before(std::cell::UnsafeCell<MaybeUninit<libc::sigaction>>);

    // SAFETY: written under `INSTALLING` before the handler is installed, and read by it alone.
    unsafe impl Sync for Before {}

    pub(super) fn is_torn(place: usize) -> bool {
        WATCHED[place].torn.load(Ordering::Acquire)
    }

    pub(super) fn forget(place: usize) {
        WATCHED[place].start.store(0, Ordering::Release);
    }

    /// Watch a mapping until it is forgotten; `None` if it is empty or there are too many.
    pub(super) fn watch(bytes: &[u8]) -> Option<usize> {
        if bytes.is_empty() {
            return None;
        }
        let _alone = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
        install();
        let free = |watched: &Watched| watched.start.load(Ordering::Acquire) == 0;
        let place = WATCHED.iter().position(free)?;
        let start = bytes.as_ptr() as usize;
        let end = (start + bytes.len()).next_multiple_of(PAGE.load(Ordering::Relaxed));
        WATCHED[place].torn.store(false, Ordering::Release);
        WATCHED[place].end.store(end, Ordering::Release);
        WATCHED[place].start.store(start, Ordering::Release);
        Some(place)
    }

    /// Put the handler in place, unless it is; another library may have taken its place meanwhile.
    fn install() {
        let ours = handle as extern "C" fn(_, _, _) as usize;
        // SAFETY: both structures are plain data that is valid when zeroed; the handler has the
        // signature that SA_SIGINFO asks for, and does only what a handler may do.
        unsafe {
            let size = libc::sysconf(libc::_SC_PAGESIZE);
            PAGE.store(usize::try_from(size).unwrap_or(4096), Ordering::Relaxed);
            let mut found = MaybeUninit::<libc::sigaction>::zeroed();
            let asked = libc::sigaction(libc::SIGBUS, ptr::null(), found.as_mut_ptr());
            let found = found.assume_init();
            if asked != 0 || found.sa_sigaction == ours {
                return;
            }
            *BEFORE.0.get() = MaybeUninit::new(found);
            PASSED_ON.store(false, Ordering::Relaxed);
            let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            action.sa_sigaction = ours;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
        }
    }

    extern "C" fn handle(signal: i32, information: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the system hands a valid structure over.
        let found = unsafe { &*information };
        // SAFETY: for this signal it has an address.
        let address = unsafe { found.si_addr() } as usize;
        let code = found.si_code;
        // Codes of 0 and less are of signals that a process sent.
        if code > 0 && fill(address) {
            return;
        }
        // SAFETY: the handler that was there before was valid when it was replaced; the instruction
        // at fault is run again, and raises the signal for it. It may raise it again for us: then
        // the system's own way is all that is left.
        unsafe {
            if PASSED_ON.swap(true, Ordering::Relaxed) {
                libc::signal(signal, libc::SIG_DFL);
            } else {
                libc::sigaction(signal, (*BEFORE.0.get()).as_ptr(), ptr::null_mut());
            }
            if code <= 0 {
                libc::raise(signal);
            }
        }
    }

    /// Put zeros in the place of the rest of the mapping that holds `address`; false if none does.
    fn fill(address: usize) -> bool {
        let holds = |watched: &&Watched| {
            let start = watched.start.load(Ordering::Acquire);
            start != 0 && start <= address && address < watched.end.load(Ordering::Acquire)
        };
        let Some(watched) = WATCHED.iter().find(holds) else { return false };
        watched.torn.store(true, Ordering::Release);
        let from = address - address % PAGE.load(Ordering::Relaxed);
        let length = watched.end.load(Ordering::Acquire) - from;
        // SAFETY: the range is the end of a mapping of ours, which is only read and stays mapped
        // while the reading goes on; `mmap` is a plain call of the system.
        let found = unsafe {
            libc::mmap(
                from as *mut libc::c_void,
                length,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        found != libc::MAP_FAILED
    }
}
