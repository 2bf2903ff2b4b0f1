# Two recipes, two epochs of 5,000 of the lossless images: bash bits.sh TREE OUT IMAGES
cd "$1" || exit 1
for recipe in speedrun94 onecycle30; do
    python train_fast.py --recipe $recipe --scale small --epochs 2 --subset 5000 --data "$3" --device cpu --precision fp32 \
        --deterministic --seed 3 --out "$2/$recipe"
done
