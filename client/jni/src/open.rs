//! What Java's handles name: clients, and the objects that were opened through them.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use cachelet_client::{Client, Object, OpenRequest, Options};

use crate::failure::Failure;
use crate::handles::{Found, Table};

static CLIENTS: Table<OpenClient> = Table::new();
static OBJECTS: Table<OpenObject> = Table::new();

/// A client, and the handles of what is open through it; `None` once the client is closed.
pub(crate) struct OpenClient {
    pub(crate) client: Client,
    objects: Mutex<Option<HashSet<i64>>>,
}

/// An object, and through which client it was opened.
pub(crate) struct OpenObject {
    pub(crate) object: Object,
    client: i64,
}

pub(crate) fn create(options: Options) -> Result<i64, Failure> {
    let client = OpenClient {
        client: Client::new(options),
        objects: Mutex::new(Some(HashSet::new())),
    };
    CLIENTS.insert(client).ok_or(Failure::TooMany("clients"))
}

pub(crate) fn client(handle: i64) -> Result<Found<OpenClient>, Failure> {
    CLIENTS.get(handle).ok_or(Failure::Closed("the client"))
}

pub(crate) fn object(handle: i64) -> Result<Found<OpenObject>, Failure> {
    OBJECTS.get(handle).ok_or(Failure::Closed("the object"))
}

pub(crate) fn open(client_handle: i64, request: &OpenRequest) -> Result<i64, Failure> {
    let opener = client(client_handle)?;
    let object = opener.client.open(request)?;
    enter(client_handle, &opener, object)
}

/// `None`: the client does not have it open.
pub(crate) fn open_held(client_handle: i64, request: &OpenRequest) -> Result<Option<i64>, Failure> {
    let opener = client(client_handle)?;
    let object = opener.client.open_held(request);
    object
        .map(|object| enter(client_handle, &opener, object))
        .transpose()
}

fn enter(client_handle: i64, opener: &OpenClient, object: Object) -> Result<i64, Failure> {
    let opened = OpenObject {
        object,
        client: client_handle,
    };
    let handle = OBJECTS.insert(opened).ok_or(Failure::TooMany("objects"))?;
    let mut objects = opener.objects.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(objects) = objects.as_mut() {
        objects.insert(handle);
        return Ok(handle);
    }
    drop(objects);
    OBJECTS.remove(handle);
    Err(Failure::Closed("the client"))
}

/// Does nothing on a closed object.
pub(crate) fn close_object(handle: i64) {
    let Some(closed) = OBJECTS.remove(handle) else {
        return;
    };
    let Some(opener) = CLIENTS.get(closed.client) else {
        return;
    };
    let mut objects = opener.objects.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(objects) = objects.as_mut() {
        objects.remove(&handle);
    }
}

/// Closes the objects that are open through it, too. Does nothing on a closed client.
pub(crate) fn close_client(handle: i64) {
    let Some(closed) = CLIENTS.remove(handle) else {
        return;
    };
    let objects = closed
        .objects
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    for object in objects.into_iter().flatten() {
        OBJECTS.remove(object);
    }
}
