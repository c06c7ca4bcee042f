//! Long calls: the work runs on a thread of its own without the interpreter, while the calling thread
//! reports progress and checks for Ctrl-C.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use sensmerge_core::engine::Monitor;
use sensmerge_core::{Error, Result};

use crate::error::to_python;

/// Time between two reports of progress and checks for signals.
const TICK: Duration = Duration::from_millis(50);

/// Run `work`, which `monitor` can cancel, and call `progress(done, total)` every [`TICK`] and at the
/// end. An exception of `progress` or a signal cancels the work and is raised once it has stopped; a
/// signal that comes once the work is committed is dropped.
pub(crate) fn enter<R: Send>(
    py: Python<'_>,
    monitor: &Monitor,
    progress: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce() -> Result<R> + Send,
) -> PyResult<R> {
    let (finished, mut wait) = channel::<()>();
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            // Dropped when the work returns or panics, which wakes the waiting thread.
            let _finished = finished;
            work()
        });
        let mut raised = None;
        let mut still_running = || {
            let wait = &mut wait;
            let ended = py.detach(move || wait.recv_timeout(TICK));
            ended == Err(RecvTimeoutError::Timeout)
        };
        while still_running() {
            if raised.is_none() {
                raised = tick(py, monitor, progress).err();
                if raised.is_some() {
                    monitor.cancel();
                }
            }
        }
        let result = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (raised, result) {
            // Too late: a signal that came when nothing could be taken back any more changes nothing.
            (Some(raised), Ok(result))
                if monitor.is_committed() && !raised.is_instance_of::<PyException>(py) =>
            {
                Ok(result)
            }
            // The exception, rather than "interrupted": it caused the cancellation.
            (Some(raised), Ok(_) | Err(Error::Interrupted)) => Err(raised),
            (_, Err(error)) => Err(to_python(error)),
            (None, Ok(result)) => {
                report(monitor, progress)?;
                Ok(result)
            }
        }
    })
}

fn tick(py: Python<'_>, monitor: &Monitor, progress: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    py.check_signals()?;
    report(monitor, progress)
}

fn report(monitor: &Monitor, progress: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    if let Some(progress) = progress {
        progress.call1(monitor.progress())?;
    }
    Ok(())
}
