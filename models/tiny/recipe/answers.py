"""Questions and answers in plain words."""

from grammar import write
from stories import cast, person, story
from words import ANIMALS, BOYS, FOODS, GIRLS, KIN, LOOKS, PEOPLE, PLACES, SKILLS, THINGS

WHAT = {
    "a lamp": "a thing that gives light", "a bridge": "a way over a river", "a clock": "a machine that shows the time",
    "a kite": "a toy that flies on a string", "a boat": "a small ship", "a ship": "a large boat that sails on the sea",
    "a library": "a house full of books", "a harbour": "a safe place for ships", "a forest": "a place with many trees",
    "a river": "water that flows to the sea", "a lake": "still water with land all around", "an island": "land with water on all sides",
    "a mountain": "a very high hill", "a valley": "the low land between two hills", "the sea": "a great salt water",
    "the moon": "a ball of rock that goes around the earth", "the sun": "a star that gives us light and warmth",
    "a star": "a sun that is very far away", "a cloud": "many tiny drops of water in the sky", "rain": "water that falls from the clouds",
    "snow": "frozen water that falls in soft flakes", "ice": "water that is frozen hard", "wind": "air that moves",
    "fog": "a cloud that lies on the ground", "a storm": "strong wind with rain and thunder", "thunder": "the sound that lightning makes",
    "a baker": "a person who bakes bread", "a farmer": "a person who grows food", "a teacher": "a person who helps others to learn",
    "a doctor": "a person who helps the sick", "a captain": "the leader of a ship", "a pirate": "a robber on the sea",
    "a lighthouse": "a tower with a light that guides ships", "a mill": "a house where grain becomes flour",
    "a garden": "a place where flowers and plants grow", "a market": "a place where people buy and sell", "a school": "a place where children learn",
    "a village": "a small group of houses", "a city": "a very large town", "a road": "a way for people and carts",
    "bread": "food made of flour and water", "cheese": "food made of milk", "honey": "the sweet food that bees make",
    "butter": "fat made of cream", "soup": "hot food that you eat with a spoon", "a cake": "a sweet dish for a feast",
    "a tree": "a tall plant with a trunk of wood", "a flower": "the colourful part of a plant", "a seed": "the beginning of a new plant",
    "grass": "the green plant that covers the meadow", "a leaf": "a green part of a plant", "a root": "the part of a plant under the ground",
    "a book": "many pages with words on them", "a letter": "a message on paper", "a map": "a picture that shows the way",
    "a key": "a thing that opens a lock", "a door": "the way into a house", "a window": "a hole in the wall that lets in light",
    "a bed": "a place to sleep", "a table": "a thing to eat and work at", "a chair": "a thing to sit on", "a spoon": "a tool to eat soup with",
    "a knife": "a tool that cuts", "a hammer": "a tool that drives nails", "a needle": "a tool to sew with", "a rope": "a thick and strong string",
    "a bell": "a thing that rings", "a drum": "an instrument that you beat", "a flute": "an instrument that you blow",
    "a violin": "an instrument with four strings", "a song": "words with music", "a poem": "words that sound beautiful",
    "a friend": "someone who likes you and helps you", "a secret": "something that only a few know", "a promise": "a word that you must keep",
    "a dream": "a story that comes while you sleep", "a wish": "something that you want very much", "a question": "a sentence that wants an answer",
    "a giant": "a very tall person in a story", "a king": "the ruler of a country", "a treasure": "something of great value",
    "gold": "a yellow metal that is worth a lot", "iron": "a hard and heavy metal", "glass": "a hard thing that you can look through",
    "wood": "what trees are made of", "paper": "a thin sheet to write on", "wool": "the warm coat of a sheep", "salt": "a white spice from the sea",
    "winter": "the coldest time of the year", "summer": "the warmest time of the year", "spring": "the time when flowers begin to grow",
    "autumn": "the time when the leaves fall", "night": "the time when it is dark", "morning": "the beginning of the day",
}
WHERE = {
    "fox": "in a den in the forest", "bear": "in a cave in the mountains", "duck": "by the lake", "fish": "in the water", "owl": "in a hollow tree",
    "mouse": "in a hole in the wall", "horse": "in a stable", "cow": "on a farm", "dog": "in a house with people", "cat": "in a house with people",
    "bee": "in a hive", "frog": "near the pond", "crab": "on the beach", "whale": "in the sea", "rabbit": "in a burrow under the ground",
    "squirrel": "high up in a tree", "otter": "by the river", "hedgehog": "under a pile of leaves", "sparrow": "in a nest under the roof",
    "wolf": "in the deep forest", "sheep": "in the meadow", "pig": "in a sty on the farm", "goat": "in the mountains", "hen": "in the henhouse",
    "spider": "in a web", "snail": "in its own shell", "penguin": "in the cold south", "camel": "in the desert", "seal": "by the cold sea",
}
EATS = {
    "fox": "mice and berries", "bear": "honey, fish and berries", "duck": "plants and small bugs", "owl": "mice", "mouse": "grain and cheese",
    "horse": "grass and hay", "cow": "grass", "dog": "meat and bones", "cat": "fish and mice", "rabbit": "grass and carrots", "squirrel": "nuts and seeds",
    "otter": "fish", "hedgehog": "worms and bugs", "sparrow": "seeds and bugs", "sheep": "grass", "pig": "nearly everything", "goat": "grass and leaves",
    "hen": "grain and worms", "frog": "flies", "whale": "tiny animals of the sea", "bee": "the sweet juice of flowers", "snail": "leaves",
}
SOUNDS = {
    "dog": "barks", "cat": "says meow", "cow": "says moo", "duck": "quacks", "sheep": "bleats", "horse": "neighs", "owl": "hoots", "frog": "croaks",
    "hen": "clucks", "pig": "grunts", "wolf": "howls", "bee": "hums", "mouse": "squeaks", "crow": "caws", "donkey": "brays", "bear": "growls", "lion": "roars",
}
LEGS = {
    "dog": "four", "cat": "four", "horse": "four", "duck": "two", "hen": "two", "spider": "eight", "bee": "six", "fish": "no", "bear": "four",
    "owl": "two", "cow": "four", "mouse": "four", "sparrow": "two", "fox": "four", "snail": "no", "crab": "ten", "snake": "no",
}
COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "the sun": "yellow", "a tomato": "red", "a carrot": "orange", "a plum": "purple",
    "the sea": "blue", "a lemon": "yellow", "coal": "black", "milk": "white", "a cherry": "red", "the night": "black", "a leaf": "green",
    "gold": "yellow", "chocolate": "brown", "a frog": "green", "a mouse": "grey", "blood": "red", "an elephant": "grey", "sand": "yellow",
    "a strawberry": "red", "a crow": "black", "a swan": "white", "bread": "brown", "a pumpkin": "orange",
}
OPPOSITES = {
    "big": "small", "hot": "cold", "day": "night", "old": "young", "fast": "slow", "high": "low", "happy": "sad", "wet": "dry", "full": "empty",
    "light": "dark", "long": "short", "hard": "soft", "open": "closed", "rich": "poor", "strong": "weak", "loud": "quiet", "early": "late",
    "good": "bad", "near": "far", "heavy": "light", "clean": "dirty", "sweet": "sour", "up": "down", "left": "right", "first": "last", "brave": "afraid",
}
WHY = {
    "does the wind blow": "air moves from cold places to warm places", "is the sea salty": "rivers carry salt into it",
    "do birds sing": "they want to find a friend or guard their home", "do leaves fall in autumn": "the tree saves its strength for the winter",
    "do we sleep": "our body needs rest", "does it rain": "the clouds are full of water", "is snow white": "it throws back all the light",
    "do cats purr": "they feel well and safe", "do bees make honey": "they need food for the winter", "does the moon shine": "it throws back the light of the sun",
    "do ships float": "they are lighter than the water that they push away", "is fire hot": "burning wood gives away its warmth",
    "do we eat": "our body needs strength", "do plants need light": "they make their food with it", "does bread rise": "the yeast makes small bubbles in it",
    "do dogs bark": "they want to tell us something", "do we laugh": "something is funny or we are happy", "does ice melt": "it becomes too warm for it",
    "do stars look small": "they are very far away", "does a lighthouse shine at night": "ships need to find their way in the dark",
    "do birds fly south": "the winter is too cold for them", "do people tell stories": "stories bring us together and teach us things",
    "is it dark at night": "the sun shines on the other side of the earth", "do we have friends": "life is better together",
    "do rivers flow": "water always runs down to lower places", "do we wear coats": "they keep us warm and dry", "does a clock tick": "small wheels turn inside it",
}
WORK = {
    "baker": "bakes bread and cakes", "farmer": "grows grain and keeps animals", "teacher": "helps children to learn", "doctor": "helps sick people to get well",
    "fisherman": "catches fish in the sea", "miller": "makes flour from grain", "gardener": "takes care of plants", "carpenter": "builds things of wood",
    "postman": "brings letters and parcels", "librarian": "looks after the books", "tailor": "makes coats and dresses", "captain": "leads a ship across the sea",
    "shepherd": "watches over the sheep", "clockmaker": "makes and mends clocks", "painter": "paints pictures and walls", "potter": "makes bowls and cups of clay",
    "beekeeper": "takes care of bees", "blacksmith": "makes things of iron", "cook": "cooks meals", "sailor": "works on a ship", "pilot": "flies a plane",
    "lighthouse keeper": "keeps the light burning for the ships",
}
USES = {
    "a key": "open a lock", "a lamp": "see in the dark", "a boat": "cross the water", "an umbrella": "stay dry in the rain", "a spoon": "eat soup",
    "a map": "find the way", "a hammer": "drive in nails", "a pencil": "write and draw", "a rope": "pull and tie things", "a blanket": "keep warm",
    "a ladder": "climb up high", "a needle": "sew clothes", "a basket": "carry things", "a bucket": "carry water", "a candle": "make light", "a clock": "know the time",
    "a scarf": "keep the neck warm", "a mirror": "look at yourself", "a broom": "sweep the floor", "a net": "catch fish", "an oven": "bake bread",
}
HOW = {
    "bake bread": ["mix flour, water, salt and yeast", "let the dough rest until it has grown", "bake it in a hot oven"],
    "make soup": ["wash and cut the vegetables", "cook them in water until they are soft", "add some salt and eat it hot"],
    "plant a seed": ["make a small hole in the earth", "put the seed in and cover it", "give it water every day"],
    "fly a kite": ["wait for a windy day", "run against the wind", "let out the string little by little"],
    "make tea": ["boil some water", "pour it over the tea leaves", "wait for three minutes and drink it slowly"],
    "find a friend": ["say hello and smile", "ask what the other one likes", "do something together"],
    "write a letter": ["take paper and a pen", "write down what you want to say", "put it into an envelope and send it"],
    "build a fire": ["gather dry wood", "put small sticks under big ones", "light it and blow softly"],
    "catch a fish": ["put a worm on the hook", "throw the line into the water", "sit still and be patient"],
    "fall asleep": ["put out the light", "close your eyes and breathe slowly", "think of something pleasant"],
    "clean a room": ["pick up the things from the floor", "put each thing in its place", "sweep the floor"],
    "make a birdhouse": ["cut some boards", "nail them together and make a round door", "hang it in a tree"],
    "wash a dog": ["fill a tub with warm water", "rub the dog with soap", "dry it with a towel"],
    "learn a song": ["listen to it many times", "sing one line after another", "sing it to a friend"],
    "make a snowman": ["roll three big balls of snow", "put one on top of the other", "give it a carrot for a nose"],
}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
SEASONS = ["spring", "summer", "autumn", "winter"]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
SMALL_TALK = [
    ("[Hello|Hello!|Hi|Hi there|Good day]", "[Hello! How can I help you?|Hello! What would you like to know?|Hello! It is good to see you.]"),
    ("[Good morning|Good morning!]", "[Good morning! I hope you slept well.|Good morning! What shall we talk about?]"),
    ("[Good evening|Good night]", "[Good night! Sleep well.|Good evening! How was your day?]"),
    ("[How are you?|How are you today?|How do you do?]", "[I am well, thank you. How are you?|I am fine, thank you.|Very well, thank you for asking.]"),
    ("[What is your name?|Who are you?|What are you called?]", "[My name is Tiny. I am a very small language model.|I am Tiny, a very small language model.]"),
    ("[What can you do?|What do you know?|Can you help me?]", "[I can tell little stories and answer simple questions.|I can tell you a story or answer a small question.]"),
    ("[Thank you|Thanks|Thank you very much]", "[You are welcome!|It was a pleasure.|You are welcome. Come back soon.]"),
    ("[Goodbye|Bye|See you tomorrow]", "[Goodbye! Come back soon.|Goodbye! It was nice to talk to you.|See you soon!]"),
    ("[I am sad|I feel sad today|I am so sad]", "[I am sorry to hear that. Would you like to hear a story?|I am sorry. A walk with a friend may help.|It will get better. Talk to a friend about it.]"),
    ("[I am happy|I am so happy today]", "[That is good to hear! What happened?|How nice! Happiness is best when it is shared.]"),
    ("[I am tired|I am so tired]", "[Then you should rest. Good night!|Lie down and close your eyes for a while.]"),
    ("[I am afraid|I am afraid of the dark]", "[You are not alone. A small lamp can help.|Everyone is afraid sometimes. Take a deep breath.]"),
    ("[I am hungry|I am so hungry]", "[Then you should eat some {food}.|How about some {food}?]"),
    ("[I am bored|What shall I do today?|What can I do now?]", "[You could learn to {skill}.|How about a walk {place}?|You could write a letter to your {kin}.]"),
    ("[How old are you?|When were you born?]", "[I am very young. I was trained not long ago.|I have no birthday, but I am quite new.]"),
    ("[Where do you live?|Where are you?]", "[I live in your computer.|I live in a small file on your computer.]"),
    ("[Do you like {food}?|Do you eat {food}?]", "[I cannot eat, but {food} must taste good.|I do not eat, but I like to talk about {food}.]"),
    ("[Say something nice|Say something kind|Tell me something nice]", "[You are a good friend.|The world is better with you in it.|Every day you learn something new.|You can do more than you think.]"),
    ("[What should I eat?|What is good for dinner?|What shall I cook?]", "[How about {food}?|I would cook {food} today.|You could make {food}. It is easy and good.]"),
    ("[What should I give my {kin}?|I need a gift for my {kin}]", "[You could give a {look} {thing}.|How about a {look} {thing}?|A {look} {thing} would be a fine gift.]"),
    ("[How is the weather?|What is the weather like?]", "[I cannot see it. Look out of the window!|I have no window, but I hope that the sun shines.]"),
    ("[Tell me a joke|Make me laugh]", "[Why did the {animal} cross the road? To get to the other side!|What is a {animal} in the rain? Wet!]"),
    ("[I lost my {thing}|I cannot find my {thing}]", "[Did you look {hide}?|Look {hide}. That is where I would look.|Think of where you had it last.]"),
    ("[I had a fight with my friend|My friend is angry with me]", "[Say that you are sorry. A good friend will understand.|Wait a little, and then talk about it.]"),
    ("[I want to learn to {skill}|How can I learn to {skill}?]", "[Practise a little every day, and do not give up.|Ask someone who can do it, and try it again and again.]"),
    ("[Do you have friends?|Do you have a friend?]", "[Yes, you are my friend.|I hope that you are my friend.]"),
    ("[What do you like?|What is your favourite thing?]", "[I like stories about {animal}s and old {thing}s.|I like to tell stories.]"),
]
WELL = ["", "", "", "", "", "[Good question! |That is easy. |Well now. |Let me think. |Of course. ]"]


def capital(text):
    return text[:1].upper() + text[1:]


def fact(chance):
    """One question with its answer, both as templates."""
    kind = chance.below(13)
    pick = lambda table: chance.pick(list(table.items()))
    if kind <= 1:
        thing, answer = pick(WHAT)
        return f"[What is {thing}?|Can you tell me what {thing} is?|Please explain what {thing} is.|What does it mean: {thing}?]", f"{capital(thing)} is {answer}."
    if kind == 2:
        animal, answer = pick(WHERE)
        return f"[Where does a {animal} live?|Where can I find a {animal}?|Where is the home of a {animal}?]", f"A {animal} lives {answer}."
    if kind == 3:
        animal, answer = pick(EATS)
        return f"[What does a {animal} eat?|What is the food of a {animal}?|What can I give a {animal} to eat?]", f"A {animal} eats {answer}."
    if kind == 4:
        animal, answer = pick(SOUNDS)
        return f"[What sound does a {animal} make?|What does a {animal} say?|How does a {animal} sound?]", f"A {animal} {answer}."
    if kind == 5:
        animal, answer = pick(LEGS)
        return f"[How many legs does a {animal} have?|How many legs has a {animal}?]", f"A {animal} has {answer} legs."
    if kind == 6:
        thing, answer = pick(COLOURS)
        return f"[What colour is {thing}?|Which colour does {thing} have?|Tell me the colour of {thing}.]", f"{capital(thing)} is {answer}."
    if kind == 7:
        word, answer = pick(OPPOSITES)
        if chance.once_in(2):
            word, answer = answer, word
        return f"[What is the opposite of {word}?|Tell me the opposite of {word}.]", f"The opposite of {word} is {answer}."
    if kind == 8:
        what, answer = pick(WHY)
        return f"[Why {what}?|Can you tell me why {reorder(what)}?|Do you know why {reorder(what)}?]", f"[Because {answer}.|{capital(reorder(what))} because {answer}.]"
    if kind == 9:
        who, answer = pick(WORK)
        return f"[What does a {who} do?|What is the work of a {who}?|What does a {who} do all day?]", f"A {who} {answer}."
    if kind == 10:
        thing, answer = pick(USES)
        return f"[What is {thing} for?|What can I do with {thing}?|Why do people need {thing}?]", f"With {thing} you can {answer}."
    if kind == 11:
        what, steps = pick(HOW)
        return f"[How do I {what}?|How can I {what}?|Tell me how to {what}.]", f"First, {steps[0]}. Then {steps[1]}. [At the end|Last], {steps[2]}."
    return order(chance)


def reorder(question):
    """`does it rain` becomes `it rains`; enough for the questions above."""
    verb, *rest = question.split()
    subjects = {"the": 2, "a": 2}
    length = subjects.get(rest[0], 1)
    subject, tail = rest[:length], rest[length:]
    if verb in ("is", "are"):
        return " ".join(subject + [verb] + tail)
    if verb == "does":
        tail[0] += "s"
    return " ".join(subject + tail)


def order(chance):
    """Days, months, seasons, counting and small sums."""
    kind = chance.below(4)
    if kind == 0:
        row = chance.pick([DAYS, MONTHS, SEASONS])
        at = chance.below(len(row))
        return f"[What comes after {row[at]}?|What follows {row[at]}?]", f"After {row[at]} comes {row[(at + 1) % len(row)]}."
    if kind == 1:
        row = chance.pick([DAYS, MONTHS, SEASONS])
        at = chance.below(len(row))
        return f"What comes before {row[at]}?", f"Before {row[at]} comes {row[at - 1]}."
    if kind == 2:
        until = 3 + chance.below(10)
        return f"[Count to {NUMBERS[until]}.|Please count to {NUMBERS[until]}.]", capital(", ".join(NUMBERS[1:until + 1])) + "."
    first, second = 1 + chance.below(6), 1 + chance.below(6)
    return f"[What is {NUMBERS[first]} plus {NUMBERS[second]}?|How much is {NUMBERS[first]} and {NUMBERS[second]}?]", \
        f"{capital(NUMBERS[first])} plus {NUMBERS[second]} is {NUMBERS[first + second]}."


def exchange(chance):
    """One message of the user with its answer."""
    kind = chance.below(10)
    if kind < 5:
        question, answer = fact(chance)
        return write(chance, question), write(chance, chance.pick(WELL) + answer)
    slots = cast(chance)
    slots["animal"] = slots["animal2"]
    if kind < 8:
        question, answer = chance.pick(SMALL_TALK)
        return write(chance, question, slots), write(chance, answer, slots)
    if kind == 8:
        return sentence(chance, slots)
    return story_request(chance)


def sentence(chance, slots):
    question = "[Write|Make|Give me] [one|a] sentence with the word {thing}."
    answers = [
        "{name} found a {look} {thing} {place}.", "The {thing} lay {hide}.", "{name}'s {kin} gave {him} a {look} {thing}.",
        "The {worker} sold the {look} {thing} for three coins.", "There was a {thing} {place}.", "{name} put the {thing} {hide}.",
    ]
    return write(chance, question, slots), write(chance, chance.pick(answers), slots)


def story_request(chance):
    """A story about an animal, a person or a thing."""
    hero = person(chance)
    name, what, _ = hero
    if chance.once_in(3):
        return write(chance, "[Tell me a story|Please tell me a story|I would like to hear a story|Tell me something]."), story(chance)[0]
    text, _ = story(chance, hero)
    subject = f"a {what}" if chance.once_in(2) else (f"a {what} [named|called] {name}" if chance.once_in(2) else name)
    return write(chance, f"[Tell me a story about {subject}.|Please write a story about {subject}.|I want to hear a story about {subject}.|Write about {subject}.]"), text


def conversation(chance):
    """Messages of a user and an assistant, one to four pairs."""
    pairs = 1 if chance.below(3) else 2 + chance.below(3)
    messages = []
    for _ in range(pairs):
        question, answer = exchange(chance)
        if chance.once_in(6):
            question = question[:1].lower() + question[1:]
        if chance.once_in(6):
            question = question.rstrip("?.!")
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if chance.once_in(10):
        how = "[You are a helpful assistant.|You are a friendly assistant.|Answer in plain words.|Be kind and brief.]"
        messages.insert(0, {"role": "system", "content": write(chance, how)})
    return messages
