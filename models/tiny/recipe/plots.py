"""More plots, and short texts of other kinds: descriptions, letters, pages of a diary, talks, fables."""

BRIDGE = [
    "There was a narrow bridge over the river. {morning}, {name} came from one side and {name2} from the other. In the middle they met. \"[Go back|Let me pass|Make way]!\" said {name}. \"No, you go back,\" said {name2}.",
    "[They stood there for an hour|Neither of them moved|They shouted and stamped their feet]. [The {worker} came with a cart and had to wait.|A {animal2} sat on the rail and laughed at them.|The sun went down and it grew cold.]",
    "At last {name} said, \"[This is silly|My feet are cold|I have an idea]. If [you lie down, I can step over you|we both hold on to the rail, there is room for two|I go back this time, you go back next time].\" [And so they did.|{name2} had to smile.|It was as easy as that.]",
]
CAT_ROOF = [
    "{morning}, the {animal2} of the {worker} sat on the roof and could not come down. [Half the village stood below.|The {worker} called and called.|It cried so loud that the windows shook.]",
    "One brought {food}, but it did not move. One brought a ladder, but it was too short. \"[What now|What shall we do]?\" asked the {worker}.",
    "{name} [scratched {his} head|thought hard|said nothing and went away]. Then {he} [sat down under the roof and began to eat {food2}|lay down in the grass and sang a soft song|opened the small window under the roof]. [After a while|Very slowly], the {animal2} [came down all by itself|put one foot after the other|jumped into {his} arms].",
    "\"[How did you do that|You are clever]!\" said {name2}. \"[You only have to be patient|It was not stuck, it was only proud|When nobody looks, it is easier],\" said {name}.",
]
MARKET_DAY = [
    "[Every Saturday|Once a week|On market day], {name} sold {food} at the market. But on this day, nobody stopped. [It rained.|Everybody went to the new shop across the street.|The people looked at the floor and hurried by.]",
    "Then {name2} came by with a {instrument}. \"I have no money,\" said {name2}, \"but I can play for you.\" And {he2} played [a merry tune|an old song|so well that the pigeons danced].",
    "[One after another|Soon], people stopped to listen, and [who listens gets hungry|while they listened, they bought {food}]. By noon, everything was sold. \"[Half of the money is yours|Come again next week|I will give you {food} every week],\" said {name}.",
]
DARK = [
    "{name} was afraid of the dark. Every night {he} [asked for a lamp|hid under the blanket|counted to one hundred]. \"What is in the dark?\" asked {his} {kin}. \"I do not know,\" said {name}. \"That is why I am afraid.\"",
    "\"Then let us go and look,\" said {his} {kin}. They went [into the garden|to the {goal}|down to the river] without a light. First, {name} saw nothing. Then {he} saw [the stars|small lights in the grass|the white road]. {He} heard [the {animal2}|the leaves|the water].",
    "\"[The dark is full of things|It is the same world, only quieter|It is not empty at all],\" said {name}. [From then on, {he} slept without a lamp.|The next night, {he} wanted to go again.|And {he} held on to the hand a little less.]",
]
CLOCK = [
    "The old clock of the {goal} had stopped. Nobody in the village knew what time it was. The {worker} came too late, the {worker2} came too early, and the hens [did not know when to sleep|laid no eggs].",
    "{name} climbed up to look. Between the wheels sat {kind3} in a nest of [straw|wool|paper]. \"[Please do not chase me away|It is so warm here|The ticking helps me sleep],\" it said.",
    "{name} [thought about it|did not want to hurt it|sat down beside it]. \"I will make you a house [next to the bell|in the tower|beside my stove],\" {he} said. \"And every hour, you will hear the clock.\" So the small guest [moved|agreed], and tick, tock, the clock went again.",
]
SNOW = [
    "It snowed [all night|for three days]. In the morning, {name} could not open the door. [The snow was as high as the window.|There was no road any more.] \"[What shall we eat|How shall we get out]?\" asked {his} {kin}.",
    "{name} took a [spoon|board|pan] and began to dig. [{He} dug until noon.|It was slow work.|{His} hands were cold and red.] Then {he} heard a scratching from the other side. It was {name2}, who had dug from there!",
    "They [fell into each other's arms|laughed|shook hands in the middle]. {name2} had brought {food}. [They made a fire and ate.|Then they dug on to the house of the {worker}, who was old and alone.|Now there was a road again, just wide enough for two.]",
]
PAINT = [
    "{name} found a pot of {color} paint {place}. {He} painted the door. It looked so fine that {he} painted the fence too. Then {he} painted [the bench|the cart|the bucket] and [the steps|a stone|the wheel].",
    "\"Stop!\" cried {name2}. \"Soon everything will be {color}!\" But {name} did not listen and painted [the {animal2}|{name2}'s hat|{his} own shoes]. [The {animal2} was not pleased.|{name2} was very angry.|All the hens ran away.]",
    "[Then it rained|In the evening the rain came], and all the paint ran off. Only [the door|one small stone|the bench] stayed {color}. \"[That is enough {color} for one house|One {color} thing is a joy, a hundred are a bore|It is better so],\" said {name}.",
]
HAT = [
    "The wind took the {look} hat of {name} and carried it away. {He} ran after it, [over the field|through the village|along the river]. \"Stop that hat!\" {he} cried.",
    "The {worker} ran after {him}, because {he} ran. The {worker2} ran after the {worker}, and {name2} ran behind them all, [with a {animal2} at {his2} heels|without knowing why|laughing out loud].",
    "The hat came down [in the pond|on the head of a {animal2}|on top of the {goal}]. [They all stood around it.|Nobody could speak for a while.] Then {name} said, \"[It suits you|Keep it|It was too small for me anyway].\" [And they all walked home together.|And everyone had something to laugh about for a week.]",
]
WELL = [
    "[In a dry summer|When it had not rained for weeks], the well was nearly empty. \"[Each house may take one bucket a day|We must save water],\" said the {worker}. {name} took one bucket, and no more.",
    "But one night {he} saw {name2} take [three|five] buckets. \"[Why do you do that|What are you doing]?\" asked {name}. {name2} looked down. \"[My {animal2} is ill and very thirsty|My plants are dying|I was afraid that there would be nothing left tomorrow].\"",
    "{name} [thought for a moment|said nothing and gave {him2} half of {his} own bucket|said, \"Then let us ask the others\"]. The next day, [everyone gave a cup of water|they dug deeper together, all of them|they told the {worker}, who was not angry]. [And a week later, it rained.|And the well held until the rain came.]",
]
ECHO = [
    "{name} stood in the valley and called, \"Hello!\" \"Hello!\" came back from the rocks. \"Who are you?\" called {name}. \"Who are you?\" said the voice. \"[You are rude|Do not mock me|You are silly]!\" {he} cried, and the voice cried the same.",
    "{name} went to {his} {kin} and said, \"There is someone in the valley who is rude to me.\" {His} {kin} smiled. \"[Go back and say something kind|Try again, and be friendly|Speak to it as to a friend].\"",
    "So {name} went back and called, \"{greeting}!\" And what did the voice say? \"{greeting}!\" [So it is with people too, {his} {kin} said.|{name} came back every day.|{name} laughed, and the valley laughed too.]",
]
MORE_PLOTS = [BRIDGE, CAT_ROOF, MARKET_DAY, DARK, CLOCK, SNOW, PAINT, HAT, WELL, ECHO]

DESCRIPTION = [
    "The village lies [by the sea|between two hills|in a green valley|at the end of a long road]. It has [ten|twenty|thirty] houses, a [church|mill|school] and a well. [In the morning you hear the {animal2}.|In summer the gardens are full of flowers.|On Sundays the bells ring.] The {worker} lives [in the first house|next to the well], and {name} lives in the last.",
    "The house of {name} is [small|old|crooked] and {color}. There is a {look} {thing} [above the door|on the table|in the window] and a {look2} {thing2} {hide}. [In the kitchen it smells of {food}.|The stairs creak.|A {animal2} sleeps in front of the stove.] [It is a good house.|{name} would not live anywhere else.|Who comes in does not want to leave.]",
    "{name} has a {animal2} called {petname}. {petname} is [big|small|fat|thin] and has [brown|black|white|grey] [hair|ears|feet]. {petname} likes {food} but does not like [rain|noise|Mondays|{food2}]. [At night {petname} sleeps beside {name}'s bed.|When {name} comes home, {petname} is already waiting.|Together they are never bored.]",
    "In [spring|May] the trees are green and the birds come back. In summer it is warm and the children swim in the [lake|river|sea]. In autumn the leaves fall and there are [apples|pears|plums|nuts]. In winter it snows, and {name} sits by the fire and [reads|eats {food}|tells stories]. [{name} likes autumn best.|{name} likes winter best.|Every season has something good.]",
    "The {worker} gets up at [four|five|six] o'clock. First {he} [makes a fire|feeds the {animal2}s|drinks a cup of tea]. Then {he} works until noon. After that {he} eats {food} and [sleeps a little|talks to {name}|reads a letter]. In the evening {he} is tired but [happy|content]. [It is a good life, {he} says.|Tomorrow it will be the same.]",
]
LETTER = [
    "Dear {name},\n\n[how are you?|thank you for your letter.|I hope that you are well.] I am [well|happy|a little tired]. [Yesterday|Last week] I [found a {look} {thing} {place}|went to the market and bought {food}|saw a {animal2} {place}|learned to {skill}]. [The weather is fine.|It rains all day.|It is cold here.] [Will you come to visit me soon?|When shall we see each other again?|Please write soon.]\n\n[Yours|Your friend|With love],\n{name2}",
    "Dear {kin},\n\nthank you for the {look} {thing}. [It is just what I wanted.|I use it every day.|I showed it to everyone.] [Yesterday {name2} came to visit|On Sunday we ate {food}|At school we learned to {skill}], and we [laughed a lot|had a good time]. [I miss you.|I will come to see you in summer.|Do not work too much.]\n\n[Yours|With love],\n{name}",
]
DIARY = [
    "[Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday]. [It rained all day.|The sun was shining.|It was windy.] In the morning I [went to school|helped my {kin}|looked for my {thing}]. In the afternoon I met {name} {place}. We [talked about {animal2}s|ate {food}|tried to {skill}|made a {craft}]. [It was a good day.|Tomorrow I want to go there again.|Now I am tired, so good night.]",
    "Today I found a {look} {thing} {hide}. [Nobody knows whose it is.|I asked {name}, but it was not hers or his.|It must be very old.] I put it [on the shelf|under my bed|next to the lamp]. [Perhaps it brings luck.|I wonder who lost it.|Tomorrow I will ask the {worker}.]",
]
TALK = [
    "\"[Good morning|Hello], {name},\" said {name2}. \"[Where are you going|What are you doing]?\" \"I am [going to the market|looking for my {thing}|making a {craft}|waiting for the {worker}],\" said {name}. \"[May I come with you|Can I help you]?\" \"[Yes, gladly|Of course|If you like],\" said {name}. [And so they went together.|Two are better than one.|They talked about this and that.]",
    "\"I do not like {food},\" said {name}. \"Have you ever tried it?\" asked {his} {kin}. \"No,\" said {name}. \"[Then how do you know?|Then try one spoon.]\" {name} tried it. [It was not bad at all.|\"Oh,\" said {name}, \"may I have some more?\"|{He} made a face. \"Now I know,\" {he} said.]",
    "\"What do you want to be when you grow up?\" asked {name}. \"A {worker},\" said {name2}. \"And you?\" \"I want to be a {worker2},\" said {name}. \"[Then I will visit you|Then we can work together|Then we will both be busy],\" said {name2}. [They looked at the clouds for a while.|And who knows, perhaps it will be so.]",
    "\"I can [run|jump|swim|climb] better than you,\" said {name}. \"And I can [sing|cook|read|whistle] better than you,\" said {name2}. \"I can do everything better,\" said {name}. \"[Can you also be quiet better|Then do my work too|Really everything]?\" asked the {worker}. Then [they were both quiet|they both had to laugh].",
]
FABLE = [
    "A {beast} and a {beast2} [found a piece of cheese|found a nut|both wanted the same apple]. \"I saw it first,\" said the {beast}. \"But I am [older|bigger|hungrier],\" said the {beast2}. While they quarrelled, a {beast3} came and ate it. [Who quarrels goes hungry.|So both of them had nothing.|The next time, they shared.]",
    "A proud {beast} laughed at a little {beast2}. \"You are so small,\" it said. \"What can you do?\" The next day the {beast} [was caught in a net|fell into a hole|had a thorn in its foot]. The little {beast2} [bit through the net|brought a branch|pulled out the thorn]. \"[Small friends are friends too|Now I know what you can do|Forgive me],\" said the {beast}.",
    "A {beast} asked a {beast2}, \"Why do you work all summer?\" \"Because winter will come,\" said the {beast2}. The {beast} only sang and slept. Then the snow fell and the {beast} was hungry. \"[Come in|Sit down],\" said the {beast2}. \"[Today you sing for me, and I give you {food}|There is enough for two, but next year you will help me].\"",
    "A {beast} looked into the [pond|river|well] and saw another {beast}. \"[Go away!|Who are you?]\" it said, but the other one only moved its mouth. An old {beast2} watched it. \"[You cannot win a fight with yourself|Smile, and it will smile too|The water shows you what you are],\" it said.",
]
SHORT = DESCRIPTION + LETTER + DIARY + TALK + FABLE
