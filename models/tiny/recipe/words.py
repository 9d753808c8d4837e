"""The words of the stories."""

GIRLS = "Anna Mia Clara Lena Rosa Nora Ida Ella Maya Ruth Lucy Vera Jane Amina Sofia Greta Hanna Olga Tess Zoe".split()
BOYS = "Ben Tom Max Leo Paul Sam Jonas Emil Felix Hugo Adam Oscar Karl Omar Pablo Theo Finn Luke Ravi Noah".split()
PETS = "Pip Rusty Bramble Hazel Dusty Pepper Willow Button Clover Moss Pebble Socks Ginger Biscuit Acorn Fern".split()

ANIMALS = {
    "fox": "barks", "hare": "thumps its feet", "owl": "hoots", "mouse": "squeaks", "bear": "growls", "duck": "quacks",
    "cat": "purrs", "dog": "barks", "goat": "bleats", "hedgehog": "sniffs", "frog": "croaks", "crow": "caws",
    "badger": "grunts", "squirrel": "chatters", "otter": "whistles", "donkey": "brays", "sparrow": "chirps", "hen": "clucks",
    "rabbit": "is very quiet", "turtle": "is very quiet", "horse": "neighs", "sheep": "bleats", "pig": "grunts", "wolf": "howls",
}
PEOPLE = [
    "baker", "miller", "farmer", "fisherman", "teacher", "gardener", "carpenter", "shopkeeper", "postman", "librarian",
    "tailor", "doctor", "captain", "shepherd", "clockmaker", "painter", "potter", "beekeeper", "sailor", "blacksmith",
]
KIN = ["grandmother", "grandfather", "aunt", "uncle", "mother", "father", "big sister", "big brother", "cousin"]
PLACES = [
    "in the forest", "by the river", "at the harbour", "in the old mill", "in the garden", "at the market", "on the hill",
    "by the lake", "in the barn", "behind the school", "in the library", "near the bridge", "on the beach", "in the kitchen",
    "at the station", "in the meadow", "under the oak tree", "beside the well", "in the attic", "in the orchard",
    "on the road to town", "at the edge of the village", "in the workshop", "near the church", "among the rocks",
]
HIDING = [
    "under the bed", "behind the stove", "in a coat pocket", "under a pile of leaves", "behind the door", "in the hay",
    "inside an old boot", "between two books", "under the bench", "on top of the shelf", "in the flour bag", "in the tall grass",
    "behind the curtain", "at the bottom of the basket", "in a bird's nest", "next to the well", "under the table",
]
THINGS = [
    "kite", "lantern", "key", "map", "drum", "scarf", "bell", "clock", "book", "basket", "lamp", "coin", "shell", "letter",
    "violin", "hat", "ball", "button", "whistle", "ring", "spoon", "blanket", "pencil", "flute", "mirror", "umbrella", "stone",
    "feather", "box", "cup", "candle", "toy boat", "wooden horse", "glass marble", "pocket knife", "watering can",
]
LOOKS = [
    "red", "blue", "green", "yellow", "silver", "golden", "old", "new", "tiny", "shiny", "wooden", "round", "striped", "dusty",
    "white", "black", "broken", "beautiful", "strange", "simple", "warm", "orange", "purple", "grey", "small", "heavy",
]
NATURES = [
    "kind", "brave", "shy", "clever", "curious", "quiet", "cheerful", "lazy", "patient", "careful", "friendly", "proud", "gentle",
    "young", "little", "busy", "honest", "lonely", "stubborn", "merry",
]
FOODS = [
    "bread", "soup", "apple pie", "cheese", "honey cake", "pancakes", "porridge", "plums", "pears", "carrots", "nuts", "berries",
    "warm milk", "fish", "biscuits", "cherry jam", "potatoes", "noodles", "tomatoes", "butter and bread",
]
DISHES = ["apple pie", "honey cake", "pot of soup", "loaf of bread", "plum cake", "bowl of porridge", "cherry tart", "pan of biscuits"]
CRAFTS = {
    "kite": ("paper and string", "fly"), "raft": ("logs and rope", "float"), "birdhouse": ("boards and nails", "stand"),
    "boat": ("wood and cloth", "sail"), "swing": ("rope and a plank", "swing"), "snowman": ("snow and a carrot", "stand"),
    "cart": ("wheels and boards", "roll"), "tent": ("sticks and a blanket", "stand"), "lantern": ("glass and wire", "shine"),
    "windmill": ("paper and a stick", "turn"),
}
SKILLS = {
    "swim": "in the lake", "ride a bicycle": "on the road", "whistle": "behind the barn", "play the flute": "by the window",
    "climb the oak tree": "in the garden", "bake bread": "in the kitchen", "skate": "on the frozen pond", "read": "in the library",
    "row a boat": "on the river", "draw a horse": "at the table", "tie a knot": "at the harbour", "fly a kite": "on the hill",
    "play chess": "in the garden", "sing a song": "at school", "milk the goat": "in the barn", "write a letter": "at the desk",
}
WEATHER = {
    "sunny": "The sun [was shining|shone brightly] and [the sky was blue|there was not a cloud in the sky|the air was warm].",
    "rainy": "Rain [was falling|fell] on the roofs and [the streets were wet|the paths were full of mud|the river was high].",
    "windy": "The wind [blew hard|was strong] and [the trees bent|leaves flew through the air|hats flew down the street].",
    "snowy": "Snow [lay on the fields|covered the village] and [everything was quiet|the pond was frozen|the air was cold].",
    "foggy": "Fog [lay over the valley|came in from the sea] and [nobody could see far|the houses looked like ships].",
}
FEELINGS = {
    "happy": "[smiled|laughed|clapped|jumped for joy|felt warm inside]",
    "sad": "[cried a little|sat down and sighed|felt a lump in the throat|did not want to talk]",
    "afraid": "[trembled|held on tight|wanted to run away|felt very small]",
    "tired": "[yawned|rubbed sleepy eyes|sat down to rest]",
}
MORNINGS = [
    "One [fine|cold|bright|quiet|warm] morning", "One day", "One [spring|summer|autumn|winter] day", "Early one morning",
    "On a [sunny|windy|rainy|cold] afternoon", "Late one evening", "Last [summer|winter|spring|autumn]", "On the first day of [May|June|spring|winter]",
    "On [Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday]",
]
