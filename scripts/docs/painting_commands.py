"""Painting data in docs/commands.md: (words after `python -m inpainting.data.`, settings, note) per verb."""

PAINTING_COMMANDS: tuple[tuple[str, str, str], ...] = (
    (
        "downloader fetch-annotations",
        "steps.fetch:FetchSettings",
        "Get the authors' annotations.json, llava.json and wikiart_images.csv.",
    ),
    (
        "downloader download-and-save-images-wikiart-v2",
        "steps.downloads:ImageSettings",
        "Fetch the images of a table; run again to continue. Also typed `-o` and `--output_dir`.",
    ),
    (
        "ops build",
        "steps.build:BuildSettings",
        "All steps from images and annotations to the painting data; run again to continue.",
    ),
    (
        "ops make-masks-dataset --annotations-path FILE --image-dir FOLDER --out-dir FOLDER",
        "ops:RegionSettings",
        "One mask per entity: the union of its boxes that cover 1 % to 65 % of the image.",
    ),
    (
        "ops make-entities-dataset --annotations-path FILE --image-dir FOLDER --out-dir FOLDER",
        "ops:RegionSettings",
        "One crop or collage per entity, and its annotations.json.",
    ),
    (
        "ops extract-noun-chunk-roots --entities-dir FOLDER",
        "ops:RootSettings",
        "The root of each concept's first noun chunk.",
    ),
    (
        "ops caption-masks --entities-dir FOLDER --model-id NAME --batch-size N",
        "ops:CaptionSettings",
        "Caption every crop with LLaVA-NeXT; run again to continue.",
    ),
    (
        "ops llava-annotations-to-folder --annotations-path FILE --out-dir FOLDER",
        "ops:FolderSettings",
        "Raw captions into the folders of their images.",
    ),
    (
        "ops llava-annotations-to-entity-annotations --entities-dir FOLDER",
        "ops:EntitySettings",
        "Clean the captions and add them to annotations.json.",
    ),
    (
        "ops train-val-test-split --image-dir FOLDER --masks-dir FOLDER",
        "ops:SplitSettings",
        "Images into the folders of their split.",
    ),
    (
        "ops annotate-images --image-dir FOLDER",
        "ops:AnnotateSettings",
        "Describe and box every image with Kosmos-2; run again to continue.",
    ),
    *(
        (
            f"dci_ops {verb} --annotations-dir FOLDER --image-dir FOLDER --out-dir FOLDER",
            "dci_ops:DciSettings",
            f"Densely Captioned Images: {what}.",
        )
        for verb, what in (("make-masks-dataset", "masks"), ("make-entities-dataset", "crops"))
    ),
    (
        "dci_ops to-lowercase --entities-dir FOLDER",
        "dci_ops:EntitySettings",
        "Their texts in lower case, without special characters.",
    ),
    (
        "dci_ops train-val-test-split --annotations-dir FOLDER --image-dir FOLDER --split-path FILE",
        "dci_ops:DciSplitSettings",
        "Their images into the folders of their split.",
    ),
    (
        "eval evaluate-global --annotations-path FILE --images-dir FOLDER",
        "eval:GlobalSettings",
        "Mean cosine of images and descriptions in CLIP's space.",
    ),
    (
        "eval evaluate-local --entities-dir FOLDER",
        "eval:LocalSettings",
        "Mean cosine of object crops and captions in CLIP's space.",
    ),
)
