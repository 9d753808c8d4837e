//! Which of cuBLASLt's kernels makes a product.
//!
//! The candidates of a shape are timed on first use; products with about as many rows take the same kernel, so that batches of
//! different lengths do not measure again and again. Kernels differ in the order of their sums: two runs of a program may differ
//! in rounding.

use std::{
    collections::HashMap,
    ffi::c_void,
    mem::{MaybeUninit, size_of},
    ptr::from_ref,
    sync::Mutex,
};

use candle_core::{
    CudaDevice, Result,
    cuda_backend::{
        DeviceId, WrapErr,
        cudarc::{
            cublaslt::{
                result::{
                    create_handle, create_matmul_pref, destroy_matmul_pref, matmul, set_matmul_pref_attribute,
                },
                sys,
            },
            driver::{CudaSlice, DevicePtr, sys::CUevent_flags},
        },
    },
};

use super::{
    ALIGNMENT,
    layout::{Product, Shape, checked},
};

/// What NVIDIA advises for its largest GPUs.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Candidates of a shape; the library rarely knows more.
const MOST_CANDIDATES: usize = 8;
/// How often each candidate has its turn, and its runs in one: a GPU's clock sinks as it warms up, which is not to count
/// against those that come last.
const TURNS: usize = 4;
const RUNS: usize = 3;
/// A candidate behind the first is taken where it needs at most this share of the time.
const WORTHWHILE: f32 = 0.98;

/// A kernel with its parameters.
type Algorithm = sys::cublasLtMatmulAlgo_t;

/// The library for one device, which stays for as long as the program runs.
struct Library {
    device: DeviceId,
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    chosen: HashMap<Shape, Algorithm>,
}

// SAFETY: the library allows its handle in any thread.
unsafe impl Send for Library {}

static LIBRARIES: Mutex<Vec<Library>> = Mutex::new(Vec::new());

/// `into = scale · a · b`, or added to it, by the fastest kernel; says whether the library has one.
///
/// # Safety
/// The addresses are those of dense matrices of the product's sizes and type; `into` is written by nobody else.
pub(super) unsafe fn multiply(
    device: &CudaDevice,
    product: &Product,
    addresses: [u64; 3],
    scale: f32,
) -> Result<bool> {
    let mut libraries = LIBRARIES.lock().expect("no panic while the lock is held");
    let place = match libraries.iter().position(|library| library.device == device.id()) {
        Some(place) => place,
        None => {
            libraries.push(Library::new(device)?);
            libraries.len() - 1
        }
    };
    let library = &mut libraries[place];
    // SAFETY: the caller's promise.
    unsafe {
        let Some(algorithm) = library.algorithm(device, product, addresses)? else { return Ok(false) };
        library.start(device, product, &algorithm, addresses, scale)?;
    }
    Ok(true)
}

impl Library {
    fn new(device: &CudaDevice) -> Result<Self> {
        Ok(Self {
            device: device.id(),
            handle: checked(create_handle())?,
            // SAFETY: only the library's kernels read it, after they wrote it.
            workspace: unsafe { device.alloc(WORKSPACE_BYTES)? },
            chosen: HashMap::new(),
        })
    }

    /// The kernel for a product: known, or that of about as many rows, or the fastest of those that there are.
    ///
    /// # Safety
    /// As [`multiply`].
    unsafe fn algorithm(
        &mut self,
        device: &CudaDevice,
        product: &Product,
        addresses: [u64; 3],
    ) -> Result<Option<Algorithm>> {
        let shape = product.shape;
        if let Some(known) = self.chosen.get(&shape) {
            return Ok(Some(*known));
        }
        let alike = shape.about_as_many_rows();
        if let Some(known) = self.chosen.get(&alike).copied()
            && self.fits(product, &known)
        {
            self.chosen.insert(shape, known);
            return Ok(Some(known));
        }
        let candidates = self.candidates(product)?;
        let Some(first) = candidates.first() else { return Ok(None) };
        // The first turn is warming up.
        let mut times = vec![0f32; candidates.len()];
        for turn in 0..=TURNS {
            for (candidate, sum) in candidates.iter().zip(&mut times) {
                // SAFETY: the caller's promise.
                let time = unsafe { self.time(device, product, candidate, addresses)? };
                *sum += if turn == 0 { 0. } else { time };
            }
        }
        times[0] *= WORTHWHILE;
        let best = candidates.iter().zip(times).fold((first, f32::INFINITY), |best, (candidate, time)| {
            if time < best.1 { (candidate, time) } else { best }
        });
        let best = *best.0;
        self.chosen.insert(shape, best);
        self.chosen.insert(alike, best);
        Ok(Some(best))
    }

    /// Kernels for a product, the library's favourite first.
    fn candidates(&self, product: &Product) -> Result<Vec<Algorithm>> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = checked(create_matmul_pref())?;
        let mut found = [const { MaybeUninit::uninit() }; MOST_CANDIDATES];
        let mut count = 0;
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: the library copies `size` bytes.
            checked(unsafe { set_matmul_pref_attribute(preference, attribute, value, size) })
        };
        let bytes = from_ref(&WORKSPACE_BYTES).cast();
        set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, bytes, size_of::<usize>())?;
        let alignment = u32::try_from(ALIGNMENT)?;
        for attribute in [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set(attribute, from_ref(&alignment).cast(), size_of::<u32>())?;
        }
        let Product { operation, first, second, result, .. } = *product;
        // SAFETY: all descriptions live; the library writes at most as many results as there is room for, and says how many.
        let found = unsafe {
            let status = sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                operation,
                first,
                second,
                result,
                result,
                preference,
                MOST_CANDIDATES as i32,
                found.as_mut_ptr().cast::<sys::cublasLtMatmulHeuristicResult_t>(),
                &mut count,
            );
            let _ = destroy_matmul_pref(preference);
            match status {
                sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED => return Ok(Vec::new()),
                status => checked(status.result())?,
            }
            found[..count as usize].iter().map(|found| found.assume_init()).collect::<Vec<_>>()
        };
        let is_usable = |found: &&sys::cublasLtMatmulHeuristicResult_t| found.state.result().is_ok();
        Ok(found.iter().filter(is_usable).map(|found| found.algo).collect())
    }

    /// Whether a kernel that was chosen for another number of rows does this product, too.
    fn fits(&self, product: &Product, algorithm: &Algorithm) -> bool {
        let Product { operation, first, second, result, .. } = *product;
        let mut found = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit();
        // SAFETY: all descriptions live; the library writes the result where it succeeds.
        unsafe {
            let status = sys::cublasLtMatmulAlgoCheck(
                self.handle,
                operation,
                first,
                second,
                result,
                result,
                algorithm,
                found.as_mut_ptr(),
            );
            status.result().is_ok() && found.assume_init().workspaceSize <= WORKSPACE_BYTES
        }
    }

    /// Milliseconds of a candidate.
    ///
    /// # Safety
    /// As [`multiply`].
    unsafe fn time(
        &self,
        device: &CudaDevice,
        product: &Product,
        candidate: &Algorithm,
        [a, b, into]: [u64; 3],
    ) -> Result<f32> {
        let stream = device.cuda_stream();
        // What is added to must not be added to twice.
        let shape = product.shape;
        let bytes = if shape.adds { shape.rows * shape.columns * shape.dtype.size_in_bytes() } else { 0 };
        // SAFETY: nobody reads what is computed there.
        let elsewhere = unsafe { device.alloc::<u8>(bytes.max(1))? };
        let (address, _guard) = elsewhere.device_ptr(&stream);
        let into = if shape.adds { address } else { into };
        let mark = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).w();
        // SAFETY: the caller's promise.
        unsafe {
            self.start(device, product, candidate, [a, b, into], 1.0)?;
            let start = mark()?;
            for _ in 0..RUNS {
                self.start(device, product, candidate, [a, b, into], 1.0)?;
            }
            start.elapsed_ms(&mark()?).w()
        }
    }

    /// # Safety
    /// As [`multiply`].
    unsafe fn start(
        &self,
        device: &CudaDevice,
        product: &Product,
        algorithm: &Algorithm,
        [a, b, into]: [u64; 3],
        scale: f32,
    ) -> Result<()> {
        let stream = device.cuda_stream();
        let (workspace, _guard) = self.workspace.device_ptr(&stream);
        let kept = if product.shape.adds { 1f32 } else { 0. };
        let Product { operation, first, second, result, .. } = *product;
        // SAFETY: the caller's promise; work of one stream follows in order, so that the workspace is used by one product at a
        // time.
        checked(unsafe {
            matmul(
                self.handle,
                operation,
                from_ref(&scale).cast(),
                from_ref(&kept).cast(),
                b as *const c_void,
                first,
                a as *const c_void,
                second,
                into as *const c_void,
                result,
                into as *mut c_void,
                result,
                algorithm,
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.cu_stream().cast(),
            )
        })
    }
}
