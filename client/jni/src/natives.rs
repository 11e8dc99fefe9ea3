//! The functions that the JVM calls: those of `io.cachelet.client.Native`.
//!
//! Each takes its arguments out of Java, calls the client and gives the answer back; none keeps a reference beyond its
//! call. The Java side checks arguments for who uses it wrongly; what could touch memory is checked here again.
#![allow(
    unsafe_code,
    reason = "exported symbols, and buffers whose memory belongs to the JVM"
)]

use std::cell::RefCell;
use std::panic::resume_unwind;
use std::time::Duration;

use cachelet_client::{OpenRequest, Options, Stats, Target};
use cachelet_protocol::ids::{Etag, Generation, ObjectPath, StoreFingerprint};
use jni::objects::{JByteArray, JByteBuffer, JClass, JIntArray, JLongArray, JObjectArray, JString};
use jni::sys::{jboolean, jint, jlong};
use jni::{Env, EnvUnowned, Outcome};

use crate::failure::{Failure, Throw};
use crate::open;

/// Bytes on their way into a Java array at once: they stay in the processor's second cache between the two copies. With
/// 1 MiB of that, 128 KiB to 512 KiB are alike and take 10 % longer than no second copy; 16 KiB and 1 MiB take longer.
const CHUNK_BYTES: usize = 256 << 10;

thread_local! {
    /// Where bytes for a Java array come in. Kept for the thread: a fresh one is page faults at every read.
    static CHUNK: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Runs one call: whatever goes wrong in it becomes an exception.
fn call<'local, T: Default>(
    mut env: EnvUnowned<'local>,
    body: impl FnOnce(&mut Env<'local>) -> Result<T, Failure>,
) -> T {
    // `resolve` takes the environment a second time, which only a failure needs.
    match env.with_env(body).into_outcome() {
        Outcome::Ok(value) => value,
        Outcome::Err(failure) => env.with_env(|_| Err(failure)).resolve::<Throw>(),
        Outcome::Panic(payload) => env
            .with_env(|_| -> Result<T, Failure> { resume_unwind(payload) })
            .resolve::<Throw>(),
    }
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_version<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
) -> JString<'local> {
    call(env, |env| Ok(env.new_string(env!("CARGO_PKG_VERSION"))?))
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_statNames<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
) -> JObjectArray<'local, JString<'local>> {
    call(env, |env| {
        let fields = Stats::default().fields();
        strings(env, fields.iter().map(|(name, _)| *name))
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_create<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
    socket_dir: JByteArray<'local>,
    application: JByteArray<'local>,
    pod: JByteArray<'local>,
    pod_ip: JByteArray<'local>,
    connect_timeout_millis: jlong,
    request_timeout_millis: jlong,
    max_descriptors: jlong,
    readahead_bytes: jlong,
    keep_closed_objects: jlong,
    verify_reads: jboolean,
) -> jlong {
    call(env, |env| {
        let mut options = Options {
            verify_reads,
            ..Options::default()
        };
        let socket_dir = text(env, &socket_dir)?;
        if !socket_dir.is_empty() {
            options.target = Target::Local {
                socket_dir: socket_dir.into(),
            };
        }
        options.identity.client = concat!("cachelet-jni/", env!("CARGO_PKG_VERSION")).into();
        options.identity.application = text(env, &application)?;
        options.identity.pod = text(env, &pod)?;
        options.identity.pod_ip = text(env, &pod_ip)?;
        // A negative number stands for the default.
        if let Ok(millis) = u64::try_from(connect_timeout_millis) {
            options.connect_timeout = Duration::from_millis(millis);
        }
        if let Ok(millis) = u64::try_from(request_timeout_millis) {
            options.request_timeout = Duration::from_millis(millis);
        }
        if let Ok(count) = usize::try_from(max_descriptors) {
            options.max_descriptors = count;
        }
        if let Ok(bytes) = u64::try_from(readahead_bytes) {
            options.readahead_bytes = bytes;
        }
        if let Ok(count) = usize::try_from(keep_closed_objects) {
            options.keep_closed_objects = count;
        }
        open::create(options)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_connect<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
    client: jlong,
) -> JObjectArray<'local, JString<'local>> {
    call(env, |env| {
        let worker = open::client(client)?.client.connect()?;
        let told = [
            worker.node.to_string(),
            worker.worker.to_string(),
            worker.version,
            worker.service_address,
            worker.block_bytes.to_string(),
            worker.grants.to_string(),
            worker.grants_disabled_reason,
        ];
        strings(env, told.iter().map(String::as_str))
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_setRequestTimeoutMillis<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
    client: jlong,
    millis: jlong,
) {
    call(env, |_| {
        let timeout = Duration::from_millis(unsigned(millis)?);
        open::client(client)?.client.set_request_timeout(timeout);
        Ok(())
    });
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_clientStats<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
    client: jlong,
) -> JLongArray<'local> {
    call(env, |env| {
        let stats = open::client(client)?.client.stats();
        counters(env, &stats)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_descriptorsHeld<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
    client: jlong,
) -> jint {
    call(env, |_| {
        let held = open::client(client)?.client.descriptors_held();
        Ok(jint::try_from(held).unwrap_or(jint::MAX))
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_filledBytes<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
    client: jlong,
) -> JLongArray<'local> {
    call(env, |env| {
        let filled = open::client(client)?.client.filled_bytes()?;
        let numbers = filled.map_or([-1, -1], |filled| {
            [filled.origin_bytes, filled.peer_bytes].map(|bytes| jlong::try_from(bytes).unwrap_or(jlong::MAX))
        });
        longs(env, &numbers)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_closeClient<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
    client: jlong,
) {
    call(env, |_| {
        open::close_client(client);
        Ok(())
    });
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_open<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
    client: jlong,
    uri: JByteArray<'local>,
    etag: JByteArray<'local>,
    size_bytes: jlong,
    version_id: JByteArray<'local>,
    fingerprint: JByteArray<'local>,
    first_offset: jlong,
    first_length: jlong,
    held_only: jboolean,
) -> jlong {
    call(env, |env| {
        let path: ObjectPath = text(env, &uri)?.parse()?;
        let etag = optional(&etag)
            .map(|etag| Ok::<_, Failure>(Etag::from_header(&text(env, etag)?)?))
            .transpose()?;
        let size_bytes = u64::try_from(size_bytes).ok();
        let first_offset = unsigned(first_offset)?;
        let first_length = unsigned(first_length)?;
        let request = OpenRequest {
            path,
            generation: match (&etag, size_bytes) {
                (Some(etag), Some(size_bytes)) => Some(Generation {
                    etag: etag.clone(),
                    size_bytes,
                }),
                _ => None,
            },
            version_id: optional(&version_id)
                .map(|version| text(env, version))
                .transpose()?,
            fingerprint: optional(&fingerprint)
                .map(|fingerprint| sixteen(env, fingerprint))
                .transpose()?,
            first_range: (first_length > 0).then(|| first_offset..first_offset.saturating_add(first_length)),
        };
        if held_only {
            return Ok(open::open_held(client, &request)?.unwrap_or(NOT_OPEN));
        }
        let handle = open::open(client, &request)?;
        let checked = check_generation(&request, etag.as_ref(), size_bytes, handle);
        if checked.is_err() {
            open::close_object(handle);
        }
        checked.map(|()| handle)
    })
}

/// A caller that knows half of the generation is not given another one.
fn check_generation(
    request: &OpenRequest,
    etag: Option<&Etag>,
    size_bytes: Option<u64>,
    handle: i64,
) -> Result<(), Failure> {
    let opened = open::object(handle)?;
    let generation = opened.object.generation();
    if let Some(etag) = etag
        && *etag != generation.etag
    {
        return Err(cachelet_client::Error::ObjectChanged {
            path: Box::new(request.path.clone()),
            expected: cachelet_client::ExpectedGeneration(None),
            detail: format!("the caller knows etag {etag}, the daemon generation {generation}"),
        }
        .into());
    }
    match size_bytes {
        Some(expected) if expected != generation.size_bytes => Err(Failure::OtherSize {
            path: request.path.to_string(),
            actual: generation.size_bytes,
            expected,
        }),
        _ => Ok(()),
    }
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_sizeBytes<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
    object: jlong,
) -> jlong {
    call(env, |_| {
        let size_bytes = open::object(object)?.object.size_bytes();
        Ok(jlong::try_from(size_bytes).unwrap_or(jlong::MAX))
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_etag<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
    object: jlong,
) -> JString<'local> {
    call(env, |env| {
        let opened = open::object(object)?;
        Ok(env.new_string(opened.object.generation().etag.as_str())?)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_readArray<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
    object: jlong,
    position: jlong,
    array: JByteArray<'local>,
    offset: jint,
    length: jint,
    held_only: jboolean,
) -> jint {
    call(env, |env| {
        let position = unsigned(position)?;
        let (start, length) = within(offset, length, array.len(env)?)?;
        let opened = open::object(object)?;
        CHUNK.with_borrow_mut(|chunk| {
            let most = length.min(CHUNK_BYTES);
            if chunk.len() < most {
                chunk.resize(most, 0);
            }
            let mut at = start;
            let sink = |bytes: &[u8]| -> Result<(), Failure> {
                array.set_region(env, at as jint, signed(bytes))?;
                at += bytes.len();
                Ok(())
            };
            let (object, scratch) = (&opened.object, &mut chunk[..most]);
            let read = if held_only {
                object.read_held_through(position, length as u64, scratch, sink)?
            } else {
                Some(object.read_through(position, length as u64, scratch, sink)?)
            };
            Ok(read.map_or(NOT_HELD, |read| read_or_end(read as usize, length)))
        })
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_readDirect<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
    object: jlong,
    position: jlong,
    buffer: JByteBuffer<'local>,
    capacity: jint,
    offset: jint,
    length: jint,
    held_only: jboolean,
) -> jint {
    call(env, |env| {
        let position = unsigned(position)?;
        let opened = open::object(object)?;
        let range = within(offset, length, usize::try_from(capacity).unwrap_or(0))?;
        let mut memory = Memory::at(env, &buffer, range)?;
        let read = if held_only {
            opened.object.read_held_at(memory.as_mut(), position)
        } else {
            Some(opened.object.read_at(memory.as_mut(), position)?)
        };
        Ok(read.map_or(NOT_HELD, |read| read_or_end(read, memory.length)))
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_holds<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
    object: jlong,
    position: jlong,
    length: jlong,
) -> jboolean {
    call(env, |_| {
        let start = unsigned(position)?;
        let end = start.saturating_add(unsigned(length)?);
        Ok(open::object(object)?.object.holds(start..end))
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_readVectored<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
    object: jlong,
    positions: JLongArray<'local>,
    lengths: JIntArray<'local>,
    buffers: JObjectArray<'local, JByteBuffer<'local>>,
    offsets: JIntArray<'local>,
) {
    call(env, |env| {
        let opened = open::object(object)?;
        let count = positions.len(env)?;
        if lengths.len(env)? != count || buffers.len(env)? != count || offsets.len(env)? != count {
            return Err(Failure::Argument("arrays of different lengths"));
        }
        let mut at = vec![0; count];
        positions.get_region(env, 0, &mut at)?;
        let mut how_many = vec![0; count];
        lengths.get_region(env, 0, &mut how_many)?;
        let mut into = vec![0; count];
        offsets.get_region(env, 0, &mut into)?;
        let mut ranges = Vec::with_capacity(count);
        for (index, position) in at.iter().enumerate() {
            // The array keeps the buffer alive, and this call the array.
            let buffer = buffers.get_element(env, index)?;
            let memory = Memory::of(env, &buffer, into[index], how_many[index])?;
            env.delete_local_ref(buffer);
            ranges.push((unsigned(*position)?, memory));
        }
        opened.object.read_ranges(&mut ranges)?;
        Ok(())
    });
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_prefetch<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
    object: jlong,
    position: jlong,
    length: jlong,
) {
    call(env, |_| {
        let start = unsigned(position)?;
        let end = start.saturating_add(unsigned(length)?);
        open::object(object)?.object.prefetch(start..end);
        Ok(())
    });
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_objectStats<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
    object: jlong,
) -> JLongArray<'local> {
    call(env, |env| {
        let stats = open::object(object)?.object.stats();
        counters(env, &stats)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_io_cachelet_client_Native_closeObject<'local>(
    env: EnvUnowned<'local>,
    _class: JClass<'local>,
    object: jlong,
) {
    call(env, |_| {
        open::close_object(object);
        Ok(())
    });
}

/// What opening returns in Java where only what is open is wanted, and it is not.
const NOT_OPEN: jlong = 0;
/// What a read returns in Java where only what is held is wanted, and it is not.
const NOT_HELD: jint = -2;

/// What a read returns in Java: -1 where nothing is left.
fn read_or_end(read: usize, asked: usize) -> jint {
    if read == 0 && asked > 0 { -1 } else { read as jint }
}

/// Bytes of a direct buffer, for as long as the call that was given the buffer.
struct Memory {
    address: *mut u8,
    length: usize,
}

impl Memory {
    /// `length` bytes of the buffer from `offset` on.
    fn of(env: &Env<'_>, buffer: &JByteBuffer<'_>, offset: jint, length: jint) -> Result<Self, Failure> {
        let capacity = env.get_direct_buffer_capacity(buffer).map_err(not_direct)?;
        Self::at(env, buffer, within(offset, length, capacity)?)
    }

    /// Bytes of the buffer: the offset of the first, and how many. [`within`] has seen that they are within its capacity
    /// (`aRangeOutsideItsBufferIsRefusedByTheLibraryToo`). The JVM said that, or `CacheletObject`, which asks the buffer
    /// itself: from here it takes several calls into the JVM.
    fn at(
        env: &Env<'_>,
        buffer: &JByteBuffer<'_>,
        (offset, length): (usize, usize),
    ) -> Result<Self, Failure> {
        if length == 0 {
            let address = std::ptr::NonNull::dangling().as_ptr();
            return Ok(Self { address, length });
        }
        let address = env.get_direct_buffer_address(buffer).map_err(not_direct)?;
        Ok(Self {
            // SAFETY: At the buffer's address are as many bytes as its capacity says, and the range is within them.
            address: unsafe { address.add(offset) },
            length,
        })
    }
}

fn not_direct(_: jni::errors::Error) -> Failure {
    Failure::Argument("the buffer is not direct")
}

impl AsMut<[u8]> for Memory {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: The bytes are the buffer's, see `of`. They stay where they are while a reference to the buffer lives,
        // which the call's arguments do longer than this value. They are mapped, and nothing in Rust looks at them: the
        // kernel writes them, or they are copied over. Two values may name the same bytes, where Java passes a buffer
        // twice, but each lends them for one read only; Java threads that look at them meanwhile see what any read into
        // a shared buffer shows them.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.length) }
    }
}

/// A range of an array or buffer.
fn within(offset: jint, length: jint, capacity: usize) -> Result<(usize, usize), Failure> {
    let outside = Failure::Argument("a range outside its array or buffer");
    match (usize::try_from(offset), usize::try_from(length)) {
        (Ok(offset), Ok(length)) if offset <= capacity && length <= capacity - offset => Ok((offset, length)),
        _ => Err(outside),
    }
}

fn unsigned(number: jlong) -> Result<u64, Failure> {
    u64::try_from(number).map_err(|_| Failure::Argument("a negative position or length"))
}

/// Java's bytes are signed.
fn signed(bytes: &[u8]) -> &[i8] {
    // SAFETY: `u8` and `i8` have the same size and alignment, and every bit pattern is a value of either.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) }
}

fn text(env: &Env<'_>, bytes: &JByteArray<'_>) -> Result<String, Failure> {
    let bytes = env.convert_byte_array(bytes)?;
    String::from_utf8(bytes).map_err(|_| Failure::Argument("text that is no UTF-8"))
}

fn sixteen(env: &Env<'_>, bytes: &JByteArray<'_>) -> Result<StoreFingerprint, Failure> {
    let bytes: Result<[u8; 16], _> = env.convert_byte_array(bytes)?.try_into();
    let bytes = bytes.map_err(|_| Failure::Argument("a store fingerprint has 16 bytes"))?;
    Ok(StoreFingerprint::from_bytes(bytes))
}

fn optional<'array, 'local>(array: &'array JByteArray<'local>) -> Option<&'array JByteArray<'local>> {
    (!array.is_null()).then_some(array)
}

fn strings<'local, 'text>(
    env: &mut Env<'local>,
    texts: impl ExactSizeIterator<Item = &'text str>,
) -> Result<JObjectArray<'local, JString<'local>>, Failure> {
    let array = JObjectArray::<JString<'_>>::new(env, texts.len(), JString::null())?;
    for (index, text) in texts.enumerate() {
        let text = env.new_string(text)?;
        array.set_element(env, index, &text)?;
    }
    Ok(array)
}

fn longs<'local>(env: &mut Env<'local>, numbers: &[jlong]) -> Result<JLongArray<'local>, Failure> {
    let array = JLongArray::new(env, numbers.len())?;
    array.set_region(env, 0, numbers)?;
    Ok(array)
}

fn counters<'local>(env: &mut Env<'local>, stats: &Stats) -> Result<JLongArray<'local>, Failure> {
    let fields = stats.fields().into_iter();
    let numbers: Vec<jlong> = fields
        .map(|(_, count)| jlong::try_from(count).unwrap_or(jlong::MAX))
        .collect();
    longs(env, &numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jni::vm::{InitArgsBuilder, JavaVM};

    #[test]
    fn a_panic_and_a_wrong_argument_become_exceptions_and_nothing_unwinds_into_the_jvm() {
        let arguments = InitArgsBuilder::new().build().unwrap();
        let vm = JavaVM::new(arguments).expect("the JVM that the Java side is built with is found");
        vm.attach_current_thread(|env| -> jni::errors::Result<()> {
            let thrown_by = |body: fn() -> Result<jint, Failure>| {
                // SAFETY: The environment is this thread's, and outlives the call.
                let unowned = unsafe { EnvUnowned::from_raw(env.get_raw()) };
                assert_eq!(call(unowned, |_| body()), 0);
                format!("{:?}", env.exception_catch().unwrap_err())
            };
            let panicked = thrown_by(|| panic!("of the test, {}", 7));
            assert!(panicked.contains("java.lang.IllegalStateException"), "{panicked}");
            assert!(
                panicked.contains("the native library panicked: of the test, 7"),
                "{panicked}"
            );
            let refused = thrown_by(|| Err(Failure::Argument("no such range")));
            assert!(
                refused.contains("java.lang.IllegalArgumentException"),
                "{refused}"
            );
            assert!(refused.contains("no such range"), "{refused}");
            Ok(())
        })
        .unwrap();
    }
}
