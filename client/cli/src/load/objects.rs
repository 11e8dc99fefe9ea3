//! Which objects are to be loaded, each in which generation.

use std::collections::HashSet;

use cachelet_client::{Client, Error, OpenRequest};
use cachelet_protocol::ids::{Generation, ObjectPath};
use cachelet_protocol::wire::BypassReason;

use crate::arguments::{Load, Origin};
use crate::failure::{Failure, Kind};
use crate::fleet::Fleet;
use crate::interrupt::Interrupt;
use crate::place::Place;
use crate::proof;

/// One generation of one object, with bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) path: ObjectPath,
    pub(super) generation: Generation,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) wanted: Vec<Wanted>,
    /// Objects without bytes.
    pub(super) empty: u64,
    /// Objects that cannot be cached, and why.
    pub(super) refused: Vec<(String, String)>,
}

/// Resolves what the command line names: prefixes by listing them, paths by asking.
pub(super) fn find(
    load: &Load,
    fleet: &Fleet,
    owners: &[usize],
    interrupt: &Interrupt,
) -> Result<Objects, Failure> {
    let mut objects = Objects::default();
    let mut seen = HashSet::new();
    let mut resolver = Resolver {
        fleet,
        owners,
        origin: &load.origin,
        client: None,
        looked: false,
    };
    for place in &load.places {
        let place = if load.recursive {
            place.clone().recursive()
        } else {
            place.clone()
        };
        if interrupt.came() {
            return Err(Failure::new(
                Kind::Temporary,
                "interrupted before anything was loaded",
            ));
        }
        match place {
            Place::Object(path) => {
                if seen.insert(path.clone()) {
                    objects.add(&mut resolver, path)?;
                }
            }
            Place::Prefix(prefix) => {
                let found = proof::list(&prefix, &load.origin, interrupt)?;
                if found.objects.is_empty() && found.refused.is_empty() && found.empty == 0 {
                    let message = format!(
                        "there is nothing in {prefix}: no key begins so; check the spelling with your store's own tools"
                    );
                    return Err(Failure::new(Kind::NotFound, message));
                }
                objects.empty += found.empty;
                objects.refused.extend(found.refused);
                for (path, generation) in found.objects {
                    if seen.insert(path.clone()) {
                        objects.wanted.push(Wanted { path, generation });
                    }
                }
            }
        }
    }
    Ok(objects)
}

impl Objects {
    fn add(&mut self, resolver: &mut Resolver<'_>, path: ObjectPath) -> Result<(), Failure> {
        let generation = match resolver.generation(&path)? {
            Ok(generation) => generation,
            Err(why) => {
                self.refused.push((path.to_string(), why));
                return Ok(());
            }
        };
        if generation.size_bytes == 0 {
            self.empty += 1;
        } else {
            self.wanted.push(Wanted { path, generation });
        }
        Ok(())
    }
}

/// Asks for the generations of single objects: a worker, where its policy lets it tell, else the store.
struct Resolver<'a> {
    fleet: &'a Fleet,
    owners: &'a [usize],
    origin: &'a Origin,
    /// The worker that is asked; `None`: there is none, or nobody has looked yet.
    client: Option<Client>,
    looked: bool,
}

impl Resolver<'_> {
    /// The inner error: the object cannot be cached.
    fn generation(&mut self, path: &ObjectPath) -> Result<Result<Generation, String>, Failure> {
        let (fleet, owners) = (self.fleet, self.owners);
        if !self.looked {
            self.looked = true;
            let mut answering = owners
                .iter()
                .filter_map(|index| fleet.members[*index].connect().ok());
            self.client = answering.next();
        }
        if let Some(client) = &self.client {
            match client.open(&OpenRequest::new(path.clone())) {
                Ok(object) => return Ok(Ok(object.generation().clone())),
                Err(Error::Bypass {
                    reason: BypassReason::GenerationRequired,
                    ..
                }) => {}
                Err(Error::Bypass {
                    reason: BypassReason::NotCacheable | BypassReason::UnsupportedKey,
                    detail,
                }) => return Ok(Err(detail)),
                Err(error) => {
                    let failure = Failure::from(error);
                    return Err(Failure::new(failure.kind, format!("loading {path}: {failure}")));
                }
            }
        }
        let otherwise = "load it where the store's authorization is \"daemon\"";
        proof::generation(path, self.origin, otherwise).map(Ok)
    }
}
