use std::fs;

use super::{Order, Queue, State};
use crate::engine::session::{Lesson, Training};
use crate::engine::{Error, Result, adapter};

struct Desk {
    folder: tempfile::TempDir,
    queue: Queue,
}

impl Desk {
    /// A queue that holds these orders.
    fn new(orders: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let queue = Queue::open(folder.path().join("queue"));
        let desk = Self { folder, queue };
        for name in orders {
            assert_eq!(desk.queue.add(&desk.order(name)).unwrap().id, *name);
        }
        desk
    }

    fn order(&self, name: &str) -> Order {
        let training = Training {
            lessons: vec![Lesson::new("<a>", None)],
            method: adapter::method("lora").unwrap(),
            changes: vec![("steps".into(), "2".into())],
            slot: None,
            project: None,
            seed: 0,
            out: self.folder.path().join(name).with_extension("safetensors"),
            resume: false,
            stamp: false,
            wishes: None,
        };
        Order::new("starter", &[self.folder.path().join("pictures")], &training).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.queue.folder()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| name != ".queue.lock");
        names.sort();
        names
    }

    /// `robot: waiting`, in order; unreadable ones as `robot: sentence`.
    fn list(&self) -> Vec<String> {
        let word = |order: &Result<Order>| match order {
            Ok(order) => format!("{:?}", order.state).to_lowercase(),
            Err(error) => error.what.clone(),
        };
        self.queue.list().unwrap().iter().map(|entry| format!("{}: {}", entry.id, word(&entry.order))).collect()
    }

    fn ids(&self) -> Vec<String> {
        self.queue.list().unwrap().into_iter().map(|entry| entry.id).collect()
    }

    fn read(&self, id: &str) -> Order {
        self.queue.list().unwrap().into_iter().find(|entry| entry.id == id).unwrap().order.unwrap()
    }
}

#[test]
fn orders_keep_their_place_and_their_content() {
    let desk = Desk::new(&[]);
    assert_eq!((desk.ids(), desk.queue.folder().exists()), (Vec::new(), false), "looking makes nothing");
    assert!(desk.queue.take_next().unwrap().is_none() && !desk.queue.folder().exists());
    for name in ["robot", "Red Head!", "robot", "2024-cat", "..."] {
        desk.queue.add(&desk.order(name)).unwrap();
    }
    let files = ["0010-robot.toml", "0020-red-head.toml", "0030-robot-2.toml", "0040-2024-cat.toml", "0050-order.toml"];
    assert_eq!(desk.files(), files);
    assert_eq!(Queue::open(desk.queue.folder()).list().unwrap()[1].order, Ok(desk.order("Red Head!")));
    desk.queue.remove("red-head").unwrap();
    assert_eq!(desk.ids(), ["robot", "robot-2", "2024-cat", "order"]);
    assert!(desk.queue.remove("red-head").unwrap_err().what.contains("no order “red-head”"));
}

#[test]
fn a_wrong_order_is_told_when_it_is_added() {
    let desk = Desk::new(&[]);
    let mut order = desk.order("a");
    order.set.insert("rnak".into(), 4.into());
    assert!(desk.queue.add(&order).unwrap_err().what.contains("There is no field “rnak”"));
    assert!(!desk.queue.folder().exists());
}

#[test]
fn moving_changes_the_order_and_few_names() {
    let desk = Desk::new(&["a", "b", "c", "d"]);
    let moved = |id, position| {
        desk.queue.move_to(id, position).unwrap();
        desk.ids().concat()
    };
    assert_eq!(moved("d", 1), "adbc");
    assert_eq!(desk.files(), ["0010-a.toml", "0015-d.toml", "0020-b.toml", "0030-c.toml"]);
    assert_eq!(moved("a", 0), "adbc");
    assert_eq!(moved("b", 0), "badc");
    assert_eq!(moved("b", 99), "adcb");
    // Until there is no number left between two.
    for _ in 0..12 {
        assert_eq!(moved("b", 1), "abdc");
        assert_eq!(moved("d", 1), "adbc");
    }
    fs::rename(desk.queue.folder().join("0010-a.toml"), desk.queue.folder().join("a.toml")).ok();
    fs::write(desk.queue.folder().join("z.toml"), "").unwrap();
    let before = desk.ids();
    desk.queue.move_to("z", 0).unwrap();
    assert_eq!(desk.ids()[1..], before[..4], "a file without a number can be moved");
    assert!(desk.queue.move_to("x", 0).is_err());
}

#[test]
fn a_broken_file_is_a_sentence_and_stops_nothing() {
    let desk = Desk::new(&["a"]);
    let good = fs::read_to_string(desk.queue.folder().join("0010-a.toml")).unwrap();
    let files = [
        ("0001-torn.toml", "concept = \"/pic".to_owned(), "cannot be read"),
        ("0002-word.toml", good.replace("token", "tokn"), "tokn"),
        ("0003-field.toml", good.replace("steps", "stpes"), "There is no field “stpes”"),
        ("0004-table.toml", format!("{good}[set.rank]\nvalue = 2"), "rank is not a plain value"),
        ("0020-a.toml", good.clone(), "called a too"),
    ];
    for (name, text, _) in &files {
        fs::write(desk.queue.folder().join(name), text).unwrap();
    }
    fs::write(desk.queue.folder().join("notes.txt"), "not ours").unwrap();
    fs::create_dir(desk.queue.folder().join("folder.toml")).unwrap();
    let list = desk.list();
    assert_eq!((list.len(), list[4].as_str()), (6, "a: waiting"));
    for ((name, _, sentence), found) in files.iter().zip(list[..4].iter().chain(&list[5..])) {
        assert!(found.contains(sentence), "{name}: {found}");
    }
    let mut warnings = Vec::new();
    let mut watch = |event: crate::engine::event::Event| {
        warnings.push(event);
        Ok(())
    };
    let ran = desk.queue.each(|_, _| Ok(()), &mut watch).unwrap();
    assert_eq!((ran.done, warnings.len()), (vec!["a".to_owned()], 6), "a note and five warnings");
    desk.queue.remove("torn").unwrap();
    desk.queue.remove("0020-a").unwrap();
    assert_eq!(desk.ids(), ["word", "field", "table", "a"]);
}

#[test]
fn nobody_takes_what_another_runs_and_the_dead_let_go() {
    let desk = Desk::new(&["a", "b"]);
    let first = desk.queue.take_next().unwrap().unwrap();
    assert!(first.id == "a" && !first.order.resume);
    let other = Queue::open(desk.queue.folder());
    let second = other.take_next().unwrap().unwrap();
    assert_eq!(second.id, "b");
    assert!(other.take_next().unwrap().is_none());
    assert_eq!(desk.list(), ["a: running", "b: running"]);
    assert!(desk.queue.remove("a").unwrap_err().what.contains("being taught right now"));
    // The order may change around what runs.
    desk.queue.move_to("b", 0).unwrap();
    second.finish(&Ok(())).unwrap();
    assert_eq!(desk.list(), ["b: done", "a: running"]);

    // As when the process ends: the lock goes, the file still says that it runs.
    drop(first);
    assert!(fs::read_to_string(desk.queue.folder().join("0010-a.toml")).unwrap().contains("running"));
    assert_eq!(desk.list(), ["b: done", "a: waiting"]);
    let again = desk.queue.take_next().unwrap().unwrap();
    assert!(again.id == "a" && again.order.resume, "it goes on from where it was");
    again.finish(&Ok(())).unwrap();
    assert!(desk.files().iter().all(|name| !name.ends_with(".lock")), "{:?}", desk.files());
}

#[test]
fn two_at_once_take_each_order_once() {
    let names: Vec<String> = (0..12).map(|i| format!("o{i}")).collect();
    let desk = Desk::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut done: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> =
            (0..4).map(|_| scope.spawn(|| desk.queue.each(|_, _| Ok(()), &mut |_| Ok(())).unwrap().done)).collect();
        runs.into_iter().flat_map(|run| run.join().unwrap()).collect()
    });
    done.sort();
    let mut names = names;
    names.sort();
    assert_eq!(done, names);
}

#[test]
fn one_that_fails_does_not_stop_the_rest_and_a_stop_does() {
    let desk = Desk::new(&["a", "b", "c", "d"]);
    let mut taught = Vec::new();
    let teach = |order: &Order, _: &mut crate::engine::event::Watch<'_>| {
        let name = order.out.file_stem().unwrap().to_string_lossy().into_owned();
        taught.push(name.clone());
        match name.as_str() {
            "a" => Err(Error::new("The pictures are gone", "Bring them back").at("/pictures")),
            "c" => {
                // What training leaves when it is stopped on its way.
                fs::create_dir(format!("{}.state", order.out.display())).unwrap();
                Err(Error::cancelled())
            }
            _ => Ok(()),
        }
    };
    let error = desk.queue.each(teach, &mut |_| Ok(())).unwrap_err();
    assert_eq!((error, taught.concat()), (Error::cancelled(), "abc".into()));
    assert_eq!(desk.list(), ["a: failed", "b: done", "c: waiting", "d: waiting"]);
    let failed = desk.read("a");
    assert_eq!(failed.error.as_deref(), Some("The pictures are gone. Bring them back.\n  /pictures"));
    assert!(!failed.resume && desk.read("c").resume && !desk.read("d").resume);

    desk.queue.retry("a").unwrap();
    assert_eq!((desk.read("a").state, desk.read("a").error), (State::Waiting, None));
    let ran = desk.queue.each(|_, _| Ok(()), &mut |_| Ok(())).unwrap();
    assert_eq!((ran.done.concat(), ran.failed.len()), ("acd".into(), 0));
}

#[test]
fn what_people_do_to_a_running_order_counts() {
    let desk = Desk::new(&["a", "b"]);
    let (a, b) = (desk.queue.take_next().unwrap().unwrap(), desk.queue.take_next().unwrap().unwrap());
    fs::remove_file(desk.queue.folder().join("0010-a.toml")).unwrap();
    fs::write(desk.queue.folder().join("0020-b.toml"), "nonsense").unwrap();
    a.finish(&Ok(())).unwrap();
    b.finish(&Ok(())).unwrap();
    assert_eq!(desk.files(), ["0020-b.toml"]);
    assert_eq!(fs::read_to_string(desk.queue.folder().join("0020-b.toml")).unwrap(), "nonsense");
}
