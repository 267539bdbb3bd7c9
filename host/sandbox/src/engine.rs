//! The engine: wasmtime's with every setting, and the one thread that ticks deadlines.

use crate::bounds;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use wasmtime::{Config, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, WasmFeatures};

/// Why there is no engine. What the machine lacks, not a plugin's doing.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// wasmtime refused; mostly address space (`ulimit -v`) that the pool of memories cannot have.
    #[error(
        "the WebAssembly engine cannot start: {0}. It reserves {gib} GiB of address space, not memory: look at `ulimit -v`",
        gib = u64::from(bounds::INSTANCES_MAX) * (bounds::MEMORY_RESERVATION_BYTES >> 30)
    )]
    Start(String),
    /// The ticker's thread could not be started.
    #[error("the thread that ticks deadlines cannot start: {0}")]
    Ticker(#[from] std::io::Error),
}

/// Compiles and runs plugins. One for the process; a clone is the same engine. The ticker stops with the last of
/// its clones, components, plugins and instances.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    wasmtime: wasmtime::Engine,
    ticker: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Engine {
    /// Starts the engine and its ticker.
    ///
    /// # Errors
    /// If the machine cannot give the address space or the thread.
    pub fn new() -> Result<Engine, EngineError> {
        let wasmtime = wasmtime::Engine::new(&config()).map_err(|e| EngineError::Start(format!("{e:#}")))?;
        let stop = Arc::new(AtomicBool::new(false));
        let ticker = thread::Builder::new().name("deadline-tick".into()).spawn({
            let (wasmtime, stop) = (wasmtime.clone(), Arc::clone(&stop));
            move || {
                // Late ticks are made up for, as far as a busy machine makes them late; not more: a process that
                // was stopped for an hour must not find all its calls overdue.
                let mut last = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    thread::park_timeout(bounds::TICK);
                    let due = last.elapsed().as_nanos() / bounds::TICK.as_nanos();
                    (0..due.min(bounds::TICKS_MADE_UP_MAX)).for_each(|_| wasmtime.increment_epoch());
                    // What is left of a tick counts for the next, or all deadlines would be a tenth longer.
                    last += bounds::TICK * u32::try_from(due).unwrap_or(u32::MAX);
                }
            }
        })?;
        Ok(Engine { shared: Arc::new(Shared { wasmtime, ticker: Some(ticker), stop }) })
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.shared.wasmtime
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(ticker) = self.ticker.take() {
            ticker.thread().unpark();
            // It never panics; if it did, there is nobody left whom that concerns.
            let _ = ticker.join();
        }
    }
}

/// A deadline in ticks. One more than it is long, because the tick at hand may end at once.
pub(crate) fn ticks(deadline: Duration) -> u64 {
    let ticks = deadline.min(bounds::DEADLINE_MAX).as_nanos().div_ceil(bounds::TICK.as_nanos());
    u64::try_from(ticks).unwrap_or(u64::MAX).saturating_add(1)
}

fn config() -> Config {
    let mut config = Config::new();

    // What a call costs: without support for concurrency a third.
    config.concurrency_support(false);
    config.wasm_component_model(true);
    config.cranelift_opt_level(OptLevel::Speed);

    // A pure function: the same bits everywhere.
    config.cranelift_nan_canonicalization(true);
    config.wasm_relaxed_simd(false);
    config.relaxed_simd_deterministic(true);

    // What compilers of plugins emit, and no more. Threads would be the end of purity; the rest is surface.
    config.wasm_bulk_memory(true);
    config.wasm_multi_value(true);
    config.wasm_features(WasmFeatures::REFERENCE_TYPES, true);
    config.wasm_simd(true);
    config.wasm_extended_const(true);
    config.wasm_tail_call(false);
    config.wasm_memory64(false);
    config.wasm_multi_memory(false);
    config.wasm_custom_page_sizes(false);
    config.wasm_wide_arithmetic(false);
    config.shared_memory(false);

    // Stopping.
    config.epoch_interruption(true);
    config.max_wasm_stack(bounds::STACK_BYTES_MAX);
    // The memory's handle in a trap's core dump leads to the progress word.
    config.coredump_on_trap(true);
    config.wasm_backtrace_max_frames(std::num::NonZeroUsize::new(32));

    // Memory.
    config.memory_reservation(bounds::MEMORY_RESERVATION_BYTES);
    config.memory_reservation_for_growth(0);
    config.memory_may_move(false);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(bounds::INSTANCES_MAX)
        .total_core_instances(bounds::INSTANCES_MAX * 4)
        .total_memories(bounds::INSTANCES_MAX)
        .total_tables(bounds::INSTANCES_MAX * 2)
        .max_component_instance_size(bounds::COMPONENT_INSTANCE_BYTES_MAX)
        .max_core_instances_per_component(bounds::CORE_INSTANCES_MAX)
        .max_memories_per_component(bounds::MEMORIES_MAX)
        .max_tables_per_component(bounds::TABLES_MAX)
        .max_core_instance_size(bounds::CORE_INSTANCE_BYTES_MAX)
        .max_tables_per_module(bounds::TABLES_MAX)
        .max_memories_per_module(bounds::MEMORIES_MAX)
        .table_elements(bounds::TABLE_ELEMENTS_MAX)
        .max_memory_size(bounds::MEMORY_BYTES_MAX);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}
