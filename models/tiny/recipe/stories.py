"""Little stories: a plot is a list of paragraphs, each made of sentences with choices."""

from grammar import write
from plots import MORE_PLOTS, SHORT
from words import (
    ANIMALS, BOYS, CRAFTS, DISHES, FOODS, GIRLS, HIDING, KIN, LOOKS, MORNINGS, NATURES, PEOPLE, PETS, PLACES, SKILLS, THINGS,
    WEATHER,
)

OPENINGS = [
    "[Once upon a time there was|There once was|There was|Once there was] {kind} [named|called] {name}. {name} lived {home}.",
    "{name} was {kind} who lived {home}. [Everybody liked {him}.|{He} had many friends.|{He} was never bored.|]",
    "[Long ago|Many years ago|Not long ago], {kind} [named|called] {name} lived {home}.",
    "{home2}, there lived {kind} [named|called] {name}. [Every day {he} [went for a walk|helped {his} {kin}|played outside].|]",
]
HOMES = [
    "in a small house by the sea", "at the edge of the forest", "in a village in the mountains", "on a farm", "near the harbour",
    "in a town with red roofs", "by a wide river", "in an old mill", "in a lighthouse", "above the bakery", "on a green hill",
    "in a little boat on the river", "next to the school", "in a hollow tree", "on an island",
]
ENDINGS = [
    "From that day on, {name} and {name2} were [the best of friends|good friends|always together].",
    "{name} [went home|walked home] with a [light|happy|warm] heart.",
    "And {name} [never forgot|always remembered] that day.",
    "That night, {name} slept [very well|deeply|until the sun was high].",
    "[In the end|At last], everyone [laughed|was happy|sat down and ate {food}].",
    "{name} had learned that [it is good to share|the truth is best|small steps lead far|a friend is worth more than gold|it helps to ask|nobody has to be brave alone|patience brings good things|everyone makes mistakes].",
    "[They sat together until the stars came out.|They watched the sun go down.|Then it was time to go home.]",
    "",
]

LOST = [
    "{morning}, {name} [could not find|lost|missed] {his} {look} {thing}. [It was a gift from {his} {kin}.|{He} had had it for many years.|{He} needed it that day.] {He} looked {hide}, but it was not there.",
    "{He} [asked|went to] {name2} [for help|]. \"Have you seen my {thing}?\" {he} asked. \"No,\" said {name2}, \"but [I will help you look|two can search better than one|let us search together].\"",
    "They [looked|searched] {place} and {place2}. [They found a {look2} {thing2}, but no {thing}.|They asked the {worker}, who only shook his head.|It began to rain, but they did not give up.]",
    "[At last|Then|In the evening], {name2} looked {hide2}. There was the {thing}! \"[Here it is|I have it|Look here]!\" {he2} [cried|called|shouted]. {name} was so [happy|glad] that {he} [hugged {him2}|danced|laughed out loud].",
]
MAKING = [
    "{morning}, {name} wanted to [make|build] a {craft}. {He} took {stuff} and went to {name2}. \"Will you help me?\" {he} asked. \"[Of course|Gladly|Yes]!\" said {name2}.",
    "They worked {place} [all day|until noon|for three days]. {name} [held|cut|measured] the {part} and {name2} [tied|glued|painted] [it|everything]. [It was not easy.|It was hard work.|They sang while they worked.]",
    "[But when they tried it, it did not {act}.|But the first one broke.|Then the wind blew it over.] {name} was [sad|angry|disappointed]. \"[Let us try again|We can make it better|Do not worry],\" said {name2}. \"[We only need more string|It was too heavy|Now we know what went wrong].\"",
    "[So they tried again|They worked one more day|They started over], and this time [it was perfect|it was just right|all went well]. The {craft} could {act}! [The {worker} came to look and clapped.|All the children came to see it.|They painted it {color}.]",
]
STORM = [
    "{morning}, {name} was {place} when [dark clouds came|a storm came up|the sky turned black]. [Thunder rolled over the hills.|The wind howled.|The first drops fell.] {name} was [afraid|cold and wet|alone].",
    "{He} ran until {he} saw a [light|small house|lantern|barn]. It was the house of the {worker}. \"Come in, come in!\" [called|said] the {worker}. \"[Nobody should be outside in such weather|You are wet to the bone|Sit by the fire].\"",
    "Inside, it was warm. The {worker} gave {him} {food} and a [dry|warm|thick] blanket. They [told stories|played cards|sang songs|listened to the rain] until the storm [was over|had passed|went away].",
    "[The next day|When the sun came out|Later], {name} came back with {food2} and said thank you. \"[That was kind of you|You did not have to do that|What a surprise],\" said the {worker}.",
]
FRIEND = [
    "{name} had no one to play with. {morning}, {he} saw {kind2} {place}. It was {name2}, who was new {there}.",
    "{name} wanted to say hello but was too shy. {name2} was shy too. So they [looked at their feet|stood there and said nothing|only smiled].",
    "Then {name}'s {thing} [fell|rolled away|fell into the mud], and {name2} picked it up. \"[Is this yours|Did you lose this]?\" {he2} asked. \"Yes, thank you. [Do you want to play|Would you like some {food}|Shall we go to the river]?\" said {name}.",
    "They [played|talked|laughed] [all afternoon|until it was dark|until the bells rang]. {name2} knew [a song about the sea|a secret path|how to make a whistle from a stick], and {name} knew [where the berries grew|the names of the stars|a funny story].",
]
NOISE = [
    "[In the middle of the night|Late at night|Just after midnight], {name} heard a [strange|soft|loud] [noise|sound]. [Tap, tap, tap.|Scratch, scratch.|Bump!|It came from {somewhere}.] \"Who is there?\" {he} [whispered|called], but nobody answered.",
    "{name} [took a lamp|lit a candle|put on {his} shoes] and [went to look|opened the door slowly|walked down the dark stairs]. {His} heart beat fast. The noise came from {somewhere}.",
    "And what was it? It was [only the wind|a {animal2} that had lost its way|a {animal2} who was looking for {food}|a branch at the window|an old clock that had fallen over|{name2}, who could not sleep]! {name} [had to laugh|was glad|sighed and smiled].",
    "\"[You gave me a fright|I was so afraid|So it was you],\" said {name}. [Then {he} went back to bed.|Together they ate {food}.|{He} told the story at breakfast, and everybody laughed.]",
]
SKILL = [
    "{name} wanted to learn to {skill}. [All the others could do it already.|{His} {kin} could do it very well.|{He} had dreamed of it for a long time.] {morning}, {he} tried it {where}.",
    "The first time, it [went wrong|did not work at all|was a disaster]. The second time, it was [no better|a little better]. \"I will never learn it,\" said {name} and [sat down|sighed|kicked a stone].",
    "\"[Nobody learns it in a day|I needed a whole year|Slowly, slowly],\" said {name2}. \"[Watch me|Try it once more|Do not look down|Take a deep breath], and [then you will see|begin again|do not give up].\"",
    "[Day after day|Every morning|Again and again], {name} tried. And [one day|after a week|when summer came], {he} could {skill}! {name2} [clapped|cheered|was proud], and {name} [laughed with joy|did it again and again|showed everybody].",
]
JOURNEY = [
    "{name} had never seen the [sea|mountains|city|desert|great forest]. {morning}, {he} packed {food} and a {thing} and [set out|went on {his} way|said goodbye to {his} {kin}].",
    "On the first day, {he} met {kind2} {place}. \"Where are you going?\" asked {name2}. \"[Far away|To see the world|As far as the road goes],\" said {name}. \"[May I come with you?|Then take me with you.]\" So they went on together.",
    "They came to a [deep river|high wall|dark valley|steep mountain]. [There was no bridge.|{name} wanted to turn back.|The way was long and hard.] But {name2} [found a boat|knew a path|had a rope], and they [helped each other|held hands|went on].",
    "[After seven days|On the third day|At last], they stood [on the top|at the shore|before the gate]. [It was more beautiful than they had dreamed.|The world was wide and bright.|They could see for miles.] \"[It was worth every step|Now I know how big the world is|Let us stay a while],\" said {name}.",
]
SHARING = [
    "{morning}, {name} had a basket full of {food}. {place2}, {he} met {kind2}. \"I am so hungry,\" said {name2}. \"I have not eaten [since yesterday|all day].\"",
    "{name} [thought for a moment|looked at the basket|was hungry too]. Then {he} said, \"[Take half of it|Let us eat together|There is enough for two].\" They sat down [in the grass|under a tree|on a stone] and ate.",
    "[Some days later|In the winter|A week later], {name} [fell into the river|lost {his} way in the snow|was ill in bed|could not lift a heavy sack]. [Who came to help?|Nobody seemed to be near.] It was {name2}! \"[You helped me|You shared with me]. [Now I help you|Now it is my turn],\" said {name2}.",
]
MISTAKE = [
    "{morning}, {name} was playing with a ball in the house. Crash! The {look} {breakable} [fell to the floor|broke|was in pieces]. It belonged to {his} {kin}.",
    "{name} was afraid. [{He} hid the pieces {hide}.|{He} wanted to say that the {animal2} had done it.|{He} ran into the garden.] But {he} [could not sleep|felt bad|could not eat any {food}].",
    "[So|Then|In the evening] {he} went to {his} {kin} and said, \"I broke your {breakable}. I am [very|so] sorry.\" {His} {kin} [was quiet for a moment|looked at {him}|sighed]. \"[Thank you for telling me the truth|It takes courage to say that|A {breakable} is only a {breakable}],\" came the answer.",
    "Together they [glued the pieces|mended it|went to the {worker} and bought a new one]. [It did not look as before, but they liked it even more.|From then on, {name} played outside.|And they never spoke of it again.]",
]
RACE = [
    "{name} and {name2} wanted to know who was faster. \"[Let us race to the {goal}|Whoever comes first to the {goal} wins],\" said {name}. The {worker} gave the sign: one, two, three, go!",
    "{name} was [fast|quick as the wind] and soon far ahead. [\"I have won already,\" {he} thought, and {he} stopped to eat {food}.|{He} looked back and saw that {name2} had fallen.|{He} took a short cut through the mud.]",
    "{name2} [went on step by step|did not hurry|never stopped]. [Slowly {he2} came nearer.|{He2} passed {name} without a sound.] At the {goal}, [they arrived at the same time|{name2} was first|nobody knew who had won].",
    "\"[You ran well|What a race|Next time I will not stop],\" said {name}. They [shook hands|laughed] and shared {food2}.",
]
GIFT = [
    "[Tomorrow was|It was almost|Soon it would be] the birthday of {name2}. {name} wanted to give {him2} a {thing}, but {he} had [no money|only one coin|no idea where to get one].",
    "So {he} went to the {worker}. \"[May I work for you|Can I help you]?\" {he} asked. {name} [swept the floor|carried wood|washed the windows|fed the {animal2}s] [all day|until the evening]. The {worker} was pleased and gave {him} a {look} {thing}.",
    "On the birthday, {name2} opened the [box|paper|parcel]. \"A {thing}! [Just what I wanted|How beautiful|I always wished for one]!\" {he2} cried. [There was {food} for everyone.|They danced until late.|{name} was as happy as {name2}.]",
]
SEED = [
    "{morning}, the {worker} gave {name} a [tiny|small|brown] seed. \"[Plant it and wait|Give it water and light|Be patient],\" said the {worker}. {name} put it into the earth {place}.",
    "Every day {name} [looked at it|gave it water|sang to it]. After [three days|a week], there was nothing. After two weeks, there was still nothing. \"[Perhaps it is asleep|It will never grow|Good things take time],\" {said_someone}.",
    "Then [the rain came|spring came|the sun shone for a whole week]. {morning2}, {name} saw a [small|bright] green leaf! It grew and grew, [higher than the fence|higher than {name}|up to the window].",
    "[It was a {plant}.|It became a {plant}, the finest in the village.] [The bees came to visit it.|{name} gave the first {fruit} to {name2}.|Everybody came to see it.]",
]
TRADE = [
    "{name} had a {look} {thing}, but {he} [did not need it|liked to trade]. {place2} {he} met the {worker}, who said, \"I [need|would like] a {thing}. I will give you {food} for it.\" They traded.",
    "[A little later|Farther on], {he} met {name2}, who was hungry. \"Give me the {food} and take my {look2} {thing2},\" said {name2}. So {name} now had a {thing2}.",
    "{He} walked on and saw {kind3}, who [cried|looked sad]. \"I have lost my {thing2}!\" {name} [did not think long|smiled] and gave it away [for nothing|as a gift]. \"[You have a good heart|Thank you, thank you]!\"",
    "Now {name} had nothing in {his} hands, but {he} [was happier than before|whistled all the way home|had three new friends].",
]
RESCUE = [
    "{morning}, {name} heard a small voice {place}. \"Help! Help!\" It was a little {animal2} that had [fallen into the water|caught its foot in a net|climbed too high|got stuck in the mud].",
    "\"[Do not be afraid|Hold on|Stay calm]!\" called {name}. {He} [took a long stick|fetched a rope|ran to get {name2}] and pulled [as hard as {he} could|with all {his} strength]. [Once, twice, three times!|Slowly, it moved.]",
    "At last the {animal2} was free. It [shook itself|was wet and cold|trembled]. {name} [dried it with {his} scarf|gave it {food}|carried it home]. [Soon it was well again.|The next day it could walk again.|It fell asleep at once.]",
    "From then on, the {animal2} [came every morning|followed {name} everywhere|waited at {his} door]. [Sometimes it brought {him} a {thing}.|They shared everything.|{name} called it {petname}.]",
]
STAR = [
    "{name} could not sleep. {He} [looked out of the window|went outside] and saw a star fall [behind the hill|into the lake|over the sea]. \"Now I may make a wish,\" {he} said.",
    "But what should {he} wish for? [A {look} {thing}?|A house full of {food}?|To be the strongest of all?] {He} thought [for a long time|until {his} feet were cold].",
    "Then {he} thought of {name2}, who was [ill|far away|sad]. \"I wish that {name2} [gets well|comes home|can laugh again],\" {he} whispered.",
    "And [the next morning|three days later|before the week was over], there was a knock at the door. It was {name2}, [strong and healthy|with a bag in each hand|with a big smile]! \"[I dreamed of you|Here I am],\" said {name2}. {name} [looked up at the sky and said thank you|told nobody about the star].",
]
SHOP = [
    "{name} went to the market to buy {food}. {His} {kin} had given {him} [three|five|six|ten] coins. \"Come straight home,\" said {his} {kin}.",
    "At the market there was so much to see: [a {animal2} in a {look} hat|a man who could eat fire|a table full of {food2}|a girl who played the {instrument}]. {name} [forgot the time|stopped to look|gave one coin to the man].",
    "When {he} came to the {worker}, [the {food} was gone|there was only one coin left|it was almost evening]. \"Oh no,\" said {name}. \"What shall I do?\" The {worker} [laughed|smiled] and said, \"[Help me carry these boxes, and I will find something for you|I kept some for you|Come back tomorrow, and bring the coin].\"",
    "So {name} came home [late|tired], but with {food}. [{His} {kin} shook {his} head and smiled.|And {he} had a good story to tell.|They ate it together by the fire.]",
]
PLOTS = [LOST, MAKING, STORM, FRIEND, NOISE, SKILL, JOURNEY, SHARING, MISTAKE, RACE, GIFT, SEED, TRADE, RESCUE, STAR, SHOP] + MORE_PLOTS


def person(chance):
    """Name, what it is, and three pronouns."""
    if chance.below(5) < 3:
        girl = chance.once_in(2)
        name = chance.pick(GIRLS if girl else BOYS)
        what = "girl" if girl else "boy"
    else:
        girl = chance.once_in(2)
        name = chance.pick(PETS)
        what = chance.pick(list(ANIMALS))
    pronouns = ("she", "her", "her") if girl else ("he", "him", "his")
    return name, what, pronouns


def cast(chance, hero=None, thing=None):
    """Everything that a plot may need."""
    name, what, (he, him, his) = hero or person(chance)
    name2 = name
    while name2 == name:
        name2, what2, (he2, him2, his2) = person(chance)
    place, place2 = chance.some(PLACES, 2)
    first, second = chance.some(THINGS, 2)
    food, food2 = chance.some(FOODS, 2)
    hide, hide2 = chance.some(HIDING, 2)
    skill = chance.pick(list(SKILLS))
    craft = chance.pick(list(CRAFTS))
    home = chance.pick(HOMES)
    worker, worker2 = chance.some(PEOPLE, 2)
    beasts = chance.some(ANIMALS, 3)
    look, look2, color = chance.some(LOOKS[:5] + LOOKS[6:10] + LOOKS[11:], 3)
    return {
        "name": name, "kind": f"a {chance.pick(NATURES)} {what}", "he": he, "him": him, "his": his,
        "He": he.capitalize(), "His": his.capitalize(),
        "name2": name2, "kind2": f"a {chance.pick(NATURES)} {what2}", "he2": he2, "him2": him2, "his2": his2, "He2": he2.capitalize(),
        "kind3": f"a {chance.pick(NATURES)} {chance.pick(list(ANIMALS))}",
        "place": place, "place2": place2, "there": chance.pick(["in the village", "in the town", "at school", "there"]),
        "thing": thing or first, "thing2": second if second != thing else first, "food": food, "food2": food2,
        "hide": hide, "hide2": hide2, "look": look, "look2": look2, "color": chance.pick(["red", "blue", "green", "yellow", "white"]),
        "skill": skill, "where": SKILLS[skill], "craft": craft, "stuff": CRAFTS[craft][0], "act": CRAFTS[craft][1],
        "part": CRAFTS[craft][0].split()[0], "greeting": chance.pick(["You are my friend", "I like you", "Good morning"]), "worker": worker, "worker2": worker2, "beast": beasts[0], "beast2": beasts[1], "beast3": beasts[2], "kin": chance.pick(KIN), "home": home, "home2": home,
        "animal2": chance.pick([animal for animal in ANIMALS if animal != what]), "petname": chance.pick([pet for pet in PETS if pet not in (name, name2)]),
        "somewhere": chance.pick(["the kitchen", "the attic", "the roof", "the cellar", "the garden", "the cupboard", "the stairs"]),
        "breakable": chance.pick(["vase", "cup", "mirror", "lamp", "bowl", "clock", "jug"]),
        "goal": chance.pick(["bridge", "old oak", "mill", "well", "harbour", "church", "big rock"]),
        "plant": chance.pick(["sunflower", "apple tree", "pumpkin", "rose", "bean", "cherry tree"]), "fruit": chance.pick(["fruit", "flower"]),
        "instrument": chance.pick(["flute", "violin", "drum", "trumpet"]), "said_someone": chance.pick(["said {name2}", "said {his} {kin}", "thought {name}"]),
        "morning": chance.pick(MORNINGS), "morning2": chance.pick(["One morning", "One day", "Early in the morning"]),
    }


def story(chance, hero=None, thing=None, plots=PLOTS):
    """A story; the slots say who is in it."""
    slots = cast(chance, hero, thing)
    plot = list(chance.pick(plots))
    parts = [chance.pick(OPENINGS)]
    if chance.once_in(3):
        parts[0] += " " + WEATHER[chance.pick(list(WEATHER))]
    parts += plot
    met = any("{name2}" in part for part in plot)
    parts.append(chance.pick([ending for ending in ENDINGS if met or "{name2}" not in ending]))
    join = "\n\n" if chance.once_in(3) else " "
    return join.join(part for part in (write(chance, part, slots) for part in parts) if part), slots


def short(chance):
    """A text that is no story: a description, a letter, a page of a diary, a talk, a fable."""
    return write(chance, chance.pick(SHORT), cast(chance))
