//! What is asked of each concept of a training.

use std::path::PathBuf;

use crate::engine::concept::Trigger;
use crate::engine::train::configuration::{Configuration, Together};
use crate::engine::{Error, Result};

/// The word of a concept where none is chosen.
const TOKEN: &str = "<sks>";
const MOST_REPEATS: usize = 1000;

#[derive(Clone, Debug, PartialEq)]
pub struct Lesson {
    pub token: String,
    /// That of the concept's folder if left out.
    pub class_word: Option<String>,
    /// How often each picture is shown for once of another concept's.
    pub repeats: usize,
    /// Of its loss.
    pub weight: f32,
}

impl Lesson {
    /// With one share.
    pub fn new(token: impl Into<String>, class_word: Option<String>) -> Self {
        Self { token: token.into(), class_word, repeats: 1, weight: 1.0 }
    }

    /// From what files say, with the folder of pictures.
    pub fn of(said: Together) -> (PathBuf, Self) {
        let Together { concept, token, class, repeats, weight } = said;
        (concept, Self { token, class_word: class, repeats, weight })
    }

    /// As files say it.
    pub fn about(self, concept: PathBuf) -> Together {
        let Self { token, class_word, repeats, weight } = self;
        Together { concept, token, class: class_word, repeats, weight }
    }
}

/// The folders of pictures that a configuration names, with what is asked of each.
pub fn lessons(configuration: &Configuration) -> Vec<(PathBuf, Lesson)> {
    let Configuration { concept, token, class, repeats, weight, together, .. } = configuration.clone();
    let usual = Lesson::new(token.unwrap_or_else(|| TOKEN.into()), class);
    let (repeats, weight) = (repeats.unwrap_or(usual.repeats), weight.unwrap_or(usual.weight));
    let first = concept.map(|concept| (concept, Lesson { repeats, weight, ..usual }));
    first.into_iter().chain(together.into_iter().map(Lesson::of)).collect()
}

/// Refuses words that cannot be taught, or not beside each other, and shares that are none.
pub fn check(lessons: &[Lesson]) -> Result<()> {
    for (i, Lesson { token, class_word, repeats, weight }) in lessons.iter().enumerate() {
        Trigger::new(token, class_word.as_deref().unwrap_or_default())?;
        if lessons[..i].iter().any(|other| other.token == *token) {
            let what = format!("Two of the concepts have the token {token}");
            return Err(Error::usage(what, "Give each concept a token of its own"));
        }
        if !(1..=MOST_REPEATS).contains(repeats) || !weight.is_finite() || *weight < 0.0 {
            let what = format!("{token} cannot have {repeats} repeats at weight {weight}");
            let advice = format!("Repeats are 1 to {MOST_REPEATS}, and a weight is 0 or more");
            return Err(Error::usage(what, advice));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_taught_is_refused_by_name() {
        let robot = Lesson::new("<robot>", Some("robot".into()));
        let house = Lesson { repeats: 3, weight: 0.5, ..Lesson::new("<house>", None) };
        check(&[robot.clone(), house.clone()]).unwrap();
        let refused = |lesson: Lesson| check(&[robot.clone(), lesson]).unwrap_err().to_string();
        assert!(refused(robot.clone()).contains("Two of the concepts have the token <robot>"));
        assert!(refused(Lesson::new("two words", None)).contains("two words"));
        for (repeats, weight) in [(0, 1.0), (1001, 1.0), (1, -0.5), (1, f32::NAN), (1, f32::INFINITY)] {
            assert!(refused(Lesson { repeats, weight, ..house.clone() }).contains("<house> cannot have"));
        }
    }

    #[test]
    fn files_say_lessons_and_lessons_what_files_said() {
        let lesson = Lesson { repeats: 3, weight: 0.5, ..Lesson::new("<house>", Some("house".into())) };
        assert_eq!(Lesson::of(lesson.clone().about("pictures".into())), ("pictures".into(), lesson));
    }
}
